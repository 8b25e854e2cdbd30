#!/usr/bin/env bash
# Tests the lab itself, in a lab of its own; takes about a minute.
# Prints a line for each check and at last "N passed, N failed"; exit status 1 if any failed.
set -uo pipefail
export LC_ALL=C # the decimal point is one

HERE=$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")
SCRATCH=$(mktemp -d)
export LAB_DIR=$SCRATCH/lab LAB_SHARE=$SCRATCH/share LAB_SHOW="$SCRATCH/a private/shown" LAB_FILES=$SCRATCH/files
KEY=/home/ppss/.ssh/id_ed25519
TICK='while echo tick; do sleep 0.1; done'
passed=0 failed=0
trap 'lab down; rm -rf -- "$SCRATCH"' EXIT

lab() { "$HERE/lab.sh" "$@"; }
on() { lab as "$1" ppss "${@:2}"; } # HOST CMD...: as user ppss
is() { [[ $1 == "$2" ]]; }
has() { [[ $1 == *"$2"* ]]; }
not() { ! "$@"; }

check() { # NAME CMD...: passes if CMD succeeds
    if "${@:2}" >"$SCRATCH/out" 2>&1; then
        passed=$((passed + 1))
        echo "ok    $1"
    else
        failed=$((failed + 1))
        echo "FAIL  $1: $(tail -n 1 "$SCRATCH/out")"
    fi
}

between() { awk -v low="$1" -v x="$2" -v high="$3" 'BEGIN { print x; exit !(low <= x && x <= high) }'; }
eventually() { # SECONDS CMD...
    local end=$((SECONDS + $1))
    until "${@:2}"; do
        ((SECONDS < end)) || return 1
        sleep 0.1
    done
}
seconds() { # CMD...: prints how long it took
    local from=$EPOCHREALTIME
    "$@" >/dev/null || return
    awk -v from="$from" -v to="$EPOCHREALTIME" 'BEGIN { print to - from }'
}

grows() { # FILE
    local before
    before=$(wc -c <"$1")
    eventually 12 eval "((\$(wc -c <'$1') > $before))"
}
still() { # FILE: does not grow for 1.5 s, after half a second to settle
    local before
    sleep 0.5
    before=$(wc -c <"$1")
    sleep 1.5
    is "$(wc -c <"$1")" "$before"
}
ticking() { "$HERE/lab.sh" as n1 ppss "$@" "$TICK" >"$SCRATCH/ticks" 2>/dev/null & } # CMD...
end() { kill "$1" && wait "$1" 2>/dev/null; } # PID
runs() { has "$(lab exec "$1" sh -c 'cat /proc/[0-9]*/cmdline' | tr '\0' ' ')" "$2"; } # HOST CMD

traces() { # of a lab on this machine: links, mounts, namespaces in use, processes
    ip -o link | cut -d: -f2
    cut -d' ' -f2 /proc/self/mounts
    readlink /proc/[0-9]*/ns/{net,mnt,pid,uts} 2>/dev/null | sort -u
    grep -alsF -f "$SCRATCH/lab_dir" /proc/[0-9]*/cmdline
    ls -d "$LAB_DIR" 2>/dev/null
}
no_traces() { diff <(echo "$before") <(traces); }

listens() { on "$1" sh -c "ss -Hltnx | grep -q '$2'"; } # HOST ADDRESS
banner() { on "$1" bash -c "read -r -t 5 line <'/dev/tcp/127.0.0.1/$2' && [[ \$line == SSH-2.0* ]]"; }
background() { "$@" >/dev/null 2>&1 & } # ends with the lab
connections() { # HOST PEER: how many it believes in
    on "$1" ss -Htn state established dst "$2" | wc -l
}
rtt() { lab exec "$1" ping -q -c 10 -i 0.1 "$2" | awk -F/ '/^rtt/ { print $5 }'; }
lost() { lab exec "$1" ping -q -c 150 -i 0.01 "$2" | grep -o '[0-9.]*% packet loss' | tr -dc 0-9.; }
pings() { lab exec "$1" ping -q -c 1 -W 1 "$2"; }

test_up() {
    local took
    took=$(seconds lab up 4)
    check "4 hosts are up in less than 5 s" between 0 "${took:-99}" 5
    check "up again is harmless" lab up 4
    check "up with another number is refused" not lab up 2
    check "hosts lists 4" is "$(lab hosts | wc -l)" 4
    check "hosts tells name, address, user and key" is "$(lab hosts | tail -n 1)" "n3 10.77.0.103 ppss $KEY"
}

test_hosts() {
    local from to
    for from in master n1 n2 n3; do
        for to in master n1 n2 n3; do
            check "$from reaches $to by name over ssh" is "$(on "$from" ssh -F "$(lab ssh-config)" "$to" hostname)" "$to"
        done
    done
    check "an unknown host key is refused" not on n1 ssh -o BatchMode=yes localhost true
    check "root's password is no way in" not on n1 ssh -o PubkeyAuthentication=no root@master true
    check "a caller's key is a way in" is ppss "$(lab exec n1 ssh -i /dev/stdin n2 id -un <"$LAB_DIR/caller_key")"
    on n1 sh -c 'echo mine >~/file; echo mine >/tmp/file'
    lab exec n1 touch "$SCRATCH.file"
    check "a host's files are not in another" not lab exec n2 sh -c "ls /home/ppss/file || ls /tmp/file || ls '$SCRATCH.file'"
    check "nor on the machine" not eval "ls /home/ppss/file || ls /tmp/file || ls '$SCRATCH.file'"
    lab exec n1 touch "$LAB_SHARE/seen"
    check "files in LAB_SHARE are seen everywhere" lab exec n2 ls "$LAB_SHARE/seen"
    check "every user sees what is in LAB_SHOW" is shown "$(on n2 cat "$LAB_SHOW/file")"
    check "but not what is beside it" not lab exec n2 ls "$SCRATCH/a private/beside"
    check "nobody writes to it" not lab exec n2 touch "$LAB_SHOW/new"
    check "its parents on the machine stay closed" is 700 "$(stat -c %a "$SCRATCH/a private")"
    check "LAB_FILES are on every disk" is program "$(on n2 greet)"
    check "each host is a machine of its own" is 4 "$(for from in master n1 n2 n3; do on "$from" cat /etc/machine-id; done | sort -u | wc -l)"
    check "a host sees only its own processes" is 1 "$(lab exec n1 sh -c 'cat /proc/[0-9]*/comm' | grep -c sshd)"
    check "the machine cannot reach a host" not ping -q -c 1 -W 1 10.77.0.100
}

test_commands() {
    local odd=$'a b\n\xff\xfe\'"$(id)'
    lab exec n1 sh -c 'exit 42'
    check "exec passes the exit status on" is $? 42
    on n1 ssh n2 exit 43
    check "as passes the exit status on" is $? 43
    check "standard input is passed on" cmp <(tar -C "$HERE" -c . | on n1 sh -c 'mkdir t && tar -C t -x && cat t/lab.sh') "$HERE/lab.sh"
    check "arguments arrive byte by byte" is "$(on n1 printf '%s' "$odd")" "$odd"
    check "no signal is ignored" is "$(trap '' INT && on n1 grep SigIgn /proc/self/status)" $'SigIgn:\t0000000000000000'
    check "nor over ssh" is "$(on n1 ssh n2 grep SigIgn /proc/self/status)" $'SigIgn:\t0000000000000000'
    "$HERE/lab.sh" as n1 ppss sleep 1234 &
    eventually 2 runs n1 "sleep 1234" && end $!
    check "a command ends with its caller" eventually 2 not runs n1 "sleep 1234"
}

test_forwards() {
    background on n1 ssh -N -L 7001:127.0.0.1:22 master
    check "ssh -L forwards a port" eventually 5 banner n1 7001
    background on master ssh -N -L /tmp/far.sock:127.0.0.1:22 master
    eventually 5 listens master /tmp/far.sock
    background on n1 ssh -N -L 7002:/tmp/far.sock master
    check "ssh -L forwards a unix socket" eventually 5 banner n1 7002
}

test_restricted_key() {
    local options='restrict,port-forwarding,permitopen="127.0.0.1:6379",command="internal-sftp"'
    on n2 ssh-keygen -q -t ed25519 -N '' -f restricted
    on n2 cat restricted.pub | on master sh -c "sed 's/^/$options /' >>.ssh/authorized_keys"
    lab exec master /usr/sbin/sshd -o PidFile=none -p 6379 # stands for Redis
    background on n2 ssh -i restricted -o IdentitiesOnly=yes -N -L 7003:127.0.0.1:6379 -L 7004:127.0.0.1:22 master
    check "a restricted key opens its tunnel" eventually 5 banner n2 7003
    check "and no other" not banner n2 7004
    on master sh -c 'echo input >item'
    check "and sftp" is input "$(on n2 sh -c 'sftp -q -i restricted master:item . >&2 && cat item')"
    check "and no shell" not has "$(on n2 ssh -n -i restricted master id 2>&1)" uid=
}

test_link() {
    lab delay n1 80
    check "delay 80 is 80 ms, within 15 %" between 68 "$(rtt n1 master)" 92
    check "and for n1 only" between 0 "$(rtt n2 master)" 10
    lab heal n1
    lab loss n1 20
    check "loss 20 loses 36 % of all pings, more or less" between 20 "$(lost n1 master)" 55
    lab heal n1
    check "heal ends both" between 0 "$(rtt n1 master)" 10
    lab rate n1 20
    on n1 sh -c 'head -c 5000000 /dev/urandom >big'
    check "rate 20 takes 5 MB in 2 s, more or less" between 1.8 "$(seconds on n1 scp -q big master:)" 5
    lab delay n1 20
    check "delay adds to it" between 1.8 "$(seconds on n1 scp -q big master:)" 6
    lab heal n1
    check "heal ends both" between 0 "$(seconds on n1 scp -q big master:)" 1.5
}

test_cut() {
    ticking ssh master
    check "a connection carries data" grows "$SCRATCH/ticks"
    lab cut n1
    check "cut makes a black hole of it" still "$SCRATCH/ticks"
    check "new connections hang" not on n1 timeout 2 ssh -o ConnectTimeout=10 master true
    check "it stays established" is "$(connections n1 master)" "$(connections master n1)"
    check "heal resumes it" eval "lab heal n1 && grows '$SCRATCH/ticks'"
    end $!
    lab linkdown n1
    check "linkdown fails at once" has "$(on n1 timeout 2 ssh master true 2>&1)" unreachable
    lab heal n1
    check "heal brings the link up" eventually 5 pings n1 master
    lab delay n1 10
    lab cut n1
    check "cut works on a delayed line too" not pings n1 master
    lab heal n1
    check "and heal undoes both" between 0 "$(rtt n1 master)" 5
}

test_freeze() {
    local ticks
    ticking sh -c
    ticks=$!
    on n1 sh -c 'sleep 1; exit 44' &
    grows "$SCRATCH/ticks"
    lab freeze n1
    check "freeze stops a host" still "$SCRATCH/ticks"
    check "its sshd does not answer" not on n2 timeout 2 ssh n1 true
    lab thaw n1
    check "thaw lets it go on" grows "$SCRATCH/ticks"
    wait $!
    check "and its callers hear the end" is $? 44
    check "and its sshd answers" on n2 ssh n1 true
    end $ticks
}

test_kill() {
    local before
    background on n1 ssh n2 sleep 4321
    eventually 5 runs n2 "sleep 4321"
    before=$(connections n1 n2)
    on n2 sh -c 'echo kept >kept; sync'
    lab kill n2
    check "kill ends a host" not on n2 true
    check "its peers are not told" is "$before $(sleep 0.5; connections n1 n2)" "$before $before"
    check "kill again is harmless" lab kill n2
    check "start boots it" eval "lab start n2 && eventually 5 on n1 ssh n2 true"
    check "its files are kept" is kept "$(on n2 cat kept)"
    check "its processes are not" not runs n2 "sleep 4321"
    check "start again is harmless" lab start n2
}

test_reset() {
    on n2 sh -c 'echo left >left; echo left >>.ssh/authorized_keys; (sleep 4321 >/dev/null 2>&1 &)'
    lab exec n2 rm /usr/local/bin/greet
    lab delay n1 50
    lab cut n2
    lab freeze n1
    lab kill n3
    check "reset" lab reset
    check "ends processes" not runs n2 "sleep 4321"
    check "removes files" not on n2 ls left
    check "undoes changes" not on n2 grep left .ssh/authorized_keys
    check "brings back what was removed" is program "$(on n2 greet)"
    check "heals, thaws and starts" is "n2 n3" "$(on n1 ssh n2 hostname | tr '\n' ' ')$(on n1 ssh n3 hostname)"
    check "undoes delays" between 0 "$(rtt n1 master)" 10
}

test_down() {
    ticking sh -c
    lab delay n1 5
    lab freeze n3
    lab kill n2
    check "down" lab down
    check "down leaves nothing" eventually 3 no_traces
    check "down again is harmless" lab down
    check "up after down" lab up 2
    check "and down once more" lab down
    check "leaves nothing" eventually 3 no_traces
    mkdir "$LAB_DIR"
    check "down leaves alone what is not a lab" not lab down
    rmdir "$LAB_DIR"
}

mkdir -p "$LAB_SHARE" "$LAB_SHOW" "$LAB_FILES/usr/local/bin"
chmod 700 "$SCRATCH/a private"
touch "$SCRATCH/a private/beside"
echo shown >"$LAB_SHOW/file"
printf '#!/bin/sh\necho program\n' >"$LAB_FILES/usr/local/bin/greet"
chmod +x "$LAB_FILES/usr/local/bin/greet"
echo "$LAB_DIR" >"$SCRATCH/lab_dir" # kept out of grep's own command line
before=$(traces)
lab up 1 && lab down || exit # with 77 where a lab is impossible, in its own words
for part in up hosts commands forwards restricted_key link cut freeze kill reset down; do "test_$part"; done
echo "$passed passed, $failed failed"
((failed == 0))
