#!/usr/bin/env bash
# Several hosts on one machine, for tests that need real SSH between real hosts.
# A host is a set of namespaces (network, mount, pid, uts), an overlay of this machine's
# files and an sshd of its own. Two processes stand for it on the machine:
#   power   holds its network and its disk (the overlay) until `down`
#   init    is its pid 1; `kill` takes it away and `start` brings a new one
# All hosts hang on one bridge, in a namespace that nothing else uses. See README.md.
set -euo pipefail
umask 022

PATH=$PATH:/usr/sbin:/sbin
LAB_DIR=$(realpath -m -- "${LAB_DIR:-${TMPDIR:-/tmp}/ppss-lab}")
LAB_SHARE=${LAB_SHARE:+$(realpath -- "$LAB_SHARE")}
LAB_SHOW=${LAB_SHOW:-}
LAB_FILES=${LAB_FILES:+$(realpath -- "$LAB_FILES")}
HERE=$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")
readonly LAB_DIR LAB_SHARE LAB_SHOW LAB_FILES HERE
readonly LOGIN=ppss LOGIN_ID=7077 NETWORK=10.77.0 CANNOT=77

usage() {
    cat <<END
usage: lab.sh VERB [ARGUMENT...]
  up [N]                   start N hosts (default 3): master n1 n2 ...
  down                     stop them and remove every trace
  hosts                    name, address, user and key of each host
  ssh-config               path, inside every host, of its ssh configuration
  exec HOST CMD...         run CMD in HOST as root
  as HOST USER CMD...      run CMD in HOST as USER
  cut HOST                 drop its packets silently, both ways
  linkdown HOST            take its network interface down
  delay HOST MS            add MS milliseconds to its round trip
  loss HOST PERCENT        lose PERCENT of its packets, each way
  rate HOST MBIT           limit its link to MBIT Mbit/s, each way
  heal HOST                undo cut, linkdown, delay, loss and rate
  freeze HOST, thaw HOST   stop all its processes, let them go on
  kill HOST, start HOST    cut its power, boot it again: files stay, processes and /tmp do not
  reset                    make all hosts as they were after up
  selftest                 test the lab itself
Environment: LAB_DIR (work directory, default \${TMPDIR:-/tmp}/ppss-lab); and for up:
LAB_SHARE (a directory that every host sees at the same path, as over NFS),
LAB_SHOW (directories, between colons, that every user of the hosts sees at the same path, read-only),
LAB_FILES (a directory with what is to be on every host's disk).
Exit status: of exec and as, CMD's; else 0, 1 failed, 2 wrong usage, $CANNOT this machine cannot.
END
}

fail() { echo "lab: $2" >&2; exit "$1"; }
die() { fail 1 "$1"; }
last_error() { tail -n 1 "$LAB_DIR/log"; }

# --- one at a time

exec {lock}</dev/null

alone() { # until we end: no other lab.sh changes this lab
    [[ -d $LAB_DIR ]] || return 0
    exec {lock}<"$LAB_DIR"
    flock "$lock"
}

# --- processes: known by pid and start time, so that a pid in use again is never signalled

identity() { # PID: prints "PID START" unless the process is dead or a zombie
    local stat fields
    { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
    read -ra fields <<<"${stat##*) }"
    [[ ${fields[0]} != [ZX] ]] && echo "$1 ${fields[19]}"
}

pid_in() { # FILE: prints the pid recorded there, if that process lives
    local pid start
    [[ -s $1 ]] && read -r pid start <"$1" || return 1
    [[ $(identity "$pid") == "$pid $start" ]] && echo "$pid"
}

# Only spawn looks at this, so that no process is started and then not recorded
interrupted=
trap 'interrupted=1' INT TERM HUP

spawn() { # FILE CMD...: CMD prints its pid once it is ready; record it in FILE
    local file=$1 out pid
    shift
    [[ -z $interrupted ]] || die "interrupted"
    # bash ignores SIGINT for what it puts in the background; the hosts' processes must not inherit that
    exec {out}< <(exec env --default-signal setsid "$@" </dev/null 2>>"$LAB_DIR/log" {lock}<&-)
    identity $! >"$file" # it may fail, or we may, before it is ready
    read -r pid <&"$out" || { end "$file"; return 1; }
    exec {out}<&-
    identity "$pid" >"$file"
}

end() { # FILE: kill the process recorded there and wait until it is gone
    local pid
    while pid=$(pid_in "$1"); do
        kill -KILL "$pid" 2>/dev/null || true
        sleep 0.01
    done
    rm -f -- "$1"
}

calling() { # FUNCTION: text for `bash -c` that calls this function of ours
    echo "set -euo pipefail; $(declare -f "$1"); $1 \"\$@\""
}

# --- the switch

switch() { nsenter --target "$(pid_in "$LAB_DIR/switch.pid")" --net "$@"; }
switch_ip() { switch ip -batch -; }

start_switch() {
    # shellcheck disable=SC2016  # $$ is that shell's
    spawn "$LAB_DIR/switch.pid" unshare --net bash -c 'echo $$; exec sleep infinity >&-' ||
        die "no switch: $(last_error)"
    switch ip link add dev lab up type bridge
    # A cut host still answers ARP: new connections hang too, instead of failing with "no route"
    switch nft -f - <<END
add table bridge lab
add set bridge lab cut { type ifname; }
add chain bridge lab forward { type filter hook forward priority 0; }
add rule bridge lab forward iifname @cut ether type != arp drop
add rule bridge lab forward oifname @cut ether type != arp drop
END
}

plug_relay() { # HOST: put netdelay.py between its port and the bridge, as its "link" file says
    local host=$1 link
    read -ra link <"$LAB_DIR/$host/link"
    unplug_relay "$host"
    spawn "$LAB_DIR/$host/relay.pid" nsenter --target "$(pid_in "$LAB_DIR/switch.pid")" --net \
        python3 "$HERE/netdelay.py" "$host-near" "$host-far" "${link[@]}" || die "no relay: $(last_error)"
    switch_ip <<END
link add dev $host-wire up type bridge
link set dev $host-near master $host-wire up
link set dev $host-far master lab up
link set dev $host master $host-wire
END
}

unplug_relay() { # HOST
    [[ -e $LAB_DIR/$1/relay.pid ]] || return 0
    end "$LAB_DIR/$1/relay.pid" # and its two TAP devices with it
    switch_ip <<<"link set dev $1 master lab"$'\n'"link del dev $1-wire"
}

# --- hosts

keygen() { ssh-keygen -q -t ed25519 -N '' -C "$2" -f "$1"; }

make_host() { # HOST ADDRESS: its keys, and its line in the files that all hosts share
    local files=$LAB_DIR/$1/files key=/home/$LOGIN/.ssh/id_ed25519
    mkdir -p "$LAB_DIR/$1/disk" "$files"/{mnt,etc/ssh,root,"home/$LOGIN/.ssh"}
    keygen "$files/etc/ssh/ssh_host_ed25519_key" "root@$1"
    keygen "$files$key" "$LOGIN@$1"
    cat "$files$key.pub" >>"$LAB_DIR/authorized_keys"
    echo "$1,$2 $(<"$files/etc/ssh/ssh_host_ed25519_key.pub")" >>"$LAB_DIR/known_hosts"
    echo "$2 $1" >>"$LAB_DIR/etc_hosts"
    echo "$1 $2 $LOGIN $key" >>"$LAB_DIR/hosts"
    echo "0 0 0" >"$LAB_DIR/$1/link"
}

write_files() { # HOST: where its disk differs from the machine's
    local db
    cd -- "$LAB_DIR/$1/files"
    echo "$1" >etc/hostname
    tr -d - </proc/sys/kernel/random/uuid >etc/machine-id
    cp "$LAB_DIR/etc_hosts" etc/hosts
    cp "$LAB_DIR/known_hosts" etc/ssh/ssh_known_hosts
    for db in passwd group shadow; do # "!" is a locked account for sshd without PAM, "*" is none
        sed -e "/^$LOGIN:/d" -e 's/^root:!*:/root:*:/' "/etc/$db" >"etc/$db"
    done
    chmod 640 etc/shadow
    echo "$LOGIN:*:$LOGIN_ID:$LOGIN_ID::/home/$LOGIN:/bin/bash" >>etc/passwd
    echo "$LOGIN:x:$LOGIN_ID:" >>etc/group
    printf '%s\n' 'Host *' "    User $LOGIN" '    StrictHostKeyChecking yes' >etc/ssh/ssh_config
    cat >etc/ssh/sshd_config <<END
HostKey /etc/ssh/ssh_host_ed25519_key
PidFile /run/sshd.pid
UsePAM no
AuthenticationMethods publickey
PermitRootLogin prohibit-password
AllowTcpForwarding yes
AllowStreamLocalForwarding yes
MaxStartups 500
MaxSessions 500
Subsystem sftp internal-sftp
END
    cp "$LAB_DIR/authorized_keys" "home/$LOGIN/.ssh/"
    chmod 700 root "home/$LOGIN/.ssh"
    cp -r "home/$LOGIN/.ssh" root/
    chown -R "$LOGIN_ID:$LOGIN_ID" "home/$LOGIN"
    [[ -z $LAB_FILES ]] || cp -r --no-dereference -- "$LAB_FILES/." .
}

hold_disk() { # DIR: becomes "power", in the host's network and mount namespaces
    mount -t tmpfs -o mode=755 lab "$1/disk"
    mkdir "$1/disk/root"
    echo $$
    exec sleep infinity >&-
}

new_disk() { # DIR: in the namespaces of "power"
    local layers
    cd "$1/disk"
    ! mountpoint -q root || umount root
    rm -rf layers.*
    layers=$(mktemp -d layers.XXX) # the overlay before may still be going
    mkdir "$layers/work"
    cp -a "$1/files" "$layers/upper"
    mount -t overlay -o "lowerdir=/,upperdir=$layers/upper,workdir=$layers/work" lab root
}

boot() { # HOST DIR SHARE SHOW: becomes pid 1 of the host, in its mount, uts and pid namespaces
    local pid shown part
    read -r pid _ </proc/self/stat # the machine's number for us: /proc is still the machine's
    cd "$2/disk/root"
    pivot_root . mnt
    cd /
    hostname "$1"
    mount -t proc lab /proc
    mount -t sysfs -o ro lab /sys
    mount -t tmpfs -o mode=1777 lab /tmp
    mount -t tmpfs -o mode=755 lab /run
    mount -t tmpfs -o mode=755 lab /dev
    cp -a /mnt/dev/{null,zero,full,random,urandom,tty,fd,stdin,stdout,stderr} /dev
    ln -s pts/ptmx /dev/ptmx
    mkdir -m 1777 /dev/shm
    mkdir /dev/pts /run/sshd
    mount -t devpts -o newinstance,mode=620,ptmxmode=666,gid=tty lab /dev/pts
    IFS=: read -ra shown <<<"$4"
    for part in "${shown[@]}"; do
        # The overlay shows what is on the machine's root file system, but for its /tmp, /run and /dev
        [[ -e $part && $(stat -c %d "/mnt$part") == "$(stat -c %d /mnt)" ]] || {
            mkdir -p "$part"
            mount --rbind "/mnt$part" "$part"
            mount -o remount,bind,ro "$part"
        }
    done
    [[ -z $3 ]] || { mkdir -p "$3" && mount --bind "/mnt$3" "$3"; }
    for part in "${shown[@]}" "$3"; do
        while part=${part%/*} && [[ -n $part ]]; do
            # Of the host alone, never in what it shows of the machine
            [[ $(stat -c %A "$part") == *x ]] || chmod a+x "$part"
        done
    done
    for part in "${shown[@]}"; do
        setpriv --reuid ppss --regid ppss --clear-groups test -r "$part" -a -x "$part" ||
            { echo "others may not read $part (chmod a+rX)" >&2; exit 1; }
    done
    umount -l /mnt
    /usr/sbin/sshd -E /var/log/sshd.log
    for _ in {1..250}; do [[ ! -s /run/sshd.pid ]] || break; sleep 0.02; done
    [[ -s /run/sshd.pid ]] || { cat /var/log/sshd.log >&2; exit 1; }
    echo "$pid"
    # bash reaps, while it waits, whatever is orphaned
    exec -a init bash -c 'while :; do sleep infinity & wait; done' >/dev/null 2>&1
}

power_on() { # HOST ADDRESS: its network and its disk
    local dir=$LAB_DIR/$1 power
    spawn "$dir/power.pid" unshare --net --mount bash -c "$(calling hold_disk)" hold_disk "$dir" ||
        die "no power for $1: $(last_error)"
    fresh_disk "$1"
    power=$(pid_in "$dir/power.pid")
    switch_ip <<END
link add dev $1 type veth peer name eth0 netns $power
link set dev $1 master lab up
END
    nsenter --target "$power" --net ip -batch - <<END
address add $2/24 dev eth0
link set dev eth0 up
link set dev lo up
END
}

fresh_disk() { # HOST
    nsenter --target "$(pid_in "$LAB_DIR/$1/power.pid")" --mount bash -c "$(calling new_disk)" \
        new_disk "$LAB_DIR/$1" 2>>"$LAB_DIR/log" || die "no disk for $1: $(last_error)"
}

boot_host() { # HOST
    local dir=$LAB_DIR/$1
    spawn "$dir/init.pid" nsenter --target "$(pid_in "$dir/power.pid")" --net --mount \
        unshare --mount --uts --pid --fork --kill-child \
        bash -c "$(calling boot)" boot "$1" "$dir" "$(<"$LAB_DIR/share")" "$(<"$LAB_DIR/show")" || die "$1 does not boot: $(last_error)"
}

run_as() { # USER CMD...: from outside the host's pid namespace; CMD is inside, and is ended if we are
    local group err
    group=$(id -g -- "$1")
    exec {err}>&2 2>/dev/null # where bash says that CMD was killed: its exit status is enough
    setpriv --reuid "$1" --regid "$group" --init-groups --reset-env --pdeathsig TERM \
        env --default-signal bash -c 'cd && exec "$@"' bash "${@:2}" 2>&"$err" {err}>&-
}

# --- verbs

check_machine() {
    local pair
    for pair in ip:iproute2 nft:nftables nsenter:util-linux ping:iputils-ping python3:python3 \
        rsync:rsync ssh:openssh-client sshd:openssh-server; do
        command -v "${pair%:*}" >/dev/null || fail $CANNOT "no ${pair%:*}: apt-get install ${pair#*:}"
    done
    unshare --net --mount --uts --pid --fork mount -t tmpfs lab /mnt 2>/dev/null ||
        fail $CANNOT "this machine refuses namespaces"
}

init_of() { # HOST: prints the pid of its init, or dies
    pid_in "$LAB_DIR/$1/init.pid" || die "$1 is off (lab.sh start $1)"
}

up() {
    local count=${1:-3}
    [[ $count =~ ^[1-9][0-9]?$ ]] || fail 2 "up: not a number of hosts from 1 to 99: $count"
    check_machine
    if pid_in "$LAB_DIR/switch.pid" >/dev/null; then
        (($(wc -l <"$LAB_DIR/hosts") == count)) || die "up already, with another number of hosts (lab.sh down)"
        return
    fi
    down # what a reboot of the machine has left
    mkdir -p -- "${LAB_DIR%/*}"
    mkdir -m 700 -- "$LAB_DIR"
    alone
    : >"$LAB_DIR/hosts"
    trap down EXIT # half a lab is none
    build "$count"
    trap - EXIT
}

build() { # COUNT
    local i host address
    printf '127.0.0.1 localhost\n::1 localhost\n' >"$LAB_DIR/etc_hosts"
    echo "$LAB_SHARE" >"$LAB_DIR/share"
    echo "$LAB_SHOW" >"$LAB_DIR/show"
    keygen "$LAB_DIR/caller_key" caller
    cp "$LAB_DIR/caller_key.pub" "$LAB_DIR/authorized_keys"
    make_host master $NETWORK.100
    for ((i = 1; i < $1; i++)); do make_host "n$i" "$NETWORK.$((100 + i))"; done
    start_switch
    while read -r host address _; do
        (write_files "$host")
        power_on "$host" "$address"
        boot_host "$host"
    done <"$LAB_DIR/hosts"
}

down() {
    local file
    [[ -e $LAB_DIR ]] || return 0
    [[ -f $LAB_DIR/hosts && -O $LAB_DIR ]] || die "$LAB_DIR is not a lab: left alone"
    for file in "$LAB_DIR"/*/{relay,init,power}.pid "$LAB_DIR/switch.pid"; do end "$file"; done
    rm -rf --one-file-system -- "$LAB_DIR"
}

as() { # HOST USER CMD...
    local init
    init=$(init_of "$1")
    # No fork: a parent of util-linux would stop with a frozen command and stay stopped
    exec nsenter --target "$init" --net --mount --uts --pid --no-fork \
        bash -c "$(calling run_as)" run_as "${@:2}"
}

heal() { # HOST
    switch nft "add element bridge lab cut { $1 }; delete element bridge lab cut { $1 }"
    nsenter --target "$(pid_in "$LAB_DIR/$1/power.pid")" --net ip link set dev eth0 up
    unplug_relay "$1"
    echo "0 0 0" >"$LAB_DIR/$1/link"
}

impair() { # HOST INDEX VALUE: change one number of its "link" file
    local link
    [[ $3 =~ ^[0-9]+([.][0-9]+)?$ ]] || fail 2 "not a number: $3"
    read -ra link <"$LAB_DIR/$1/link"
    link[$2]=$3
    echo "${link[@]}" >"$LAB_DIR/$1/link"
    plug_relay "$1"
}

signal_all() { # HOST SIGNAL: at once for all but init, which nothing inside can stop
    local init
    init=$(init_of "$1")
    nsenter --target "$init" --pid bash -c "kill -s $2 -- -1" || true # none but init
    kill -s "$2" "$init"
}

power_off() { # HOST: first its link, so that no peer hears its connections end
    switch ip link set dev "$1" down
    end "$LAB_DIR/$1/init.pid"
}

start() { # HOST
    pid_in "$LAB_DIR/$1/init.pid" >/dev/null && return
    boot_host "$1"
    switch ip link set dev "$1" up
}

reset() {
    local host job jobs=()
    while read -r host _; do end "$LAB_DIR/$host/init.pid"; done <"$LAB_DIR/hosts" # links stay up: that takes time
    while read -r host _; do
        (
            heal "$host"
            fresh_disk "$host"
            start "$host"
        ) </dev/null &
        jobs+=($!)
    done <"$LAB_DIR/hosts"
    for job in "${jobs[@]}"; do wait "$job" || die "no reset: $(last_error)"; done
}

main() {
    local verb=${1:-help} wanted
    case $verb in
        up | down | hosts | reset | ssh-config | selftest | help | -h | --help) wanted=1 ;;
        cut | linkdown | heal | freeze | thaw | kill | start) wanted=2 ;;
        exec | delay | loss | rate) wanted=3 ;;
        as) wanted=4 ;;
        *) usage >&2; fail 2 "no such verb: $verb" ;;
    esac
    (($# >= wanted)) || fail 2 "$verb: argument missing (lab.sh help)"
    [[ $verb == *help || $verb == -h ]] || ((EUID == 0)) || fail $CANNOT "needs root"
    [[ $verb == @(hosts|ssh-config|exec|as|selftest|help|-h|--help) ]] || alone
    ((wanted == 1)) || [[ -f $LAB_DIR/hosts ]] || die "no lab is up (lab.sh up)"
    ((wanted == 1)) || [[ $2 =~ ^(master|n[0-9]+)$ && -d $LAB_DIR/$2 ]] || die "no host $2 (lab.sh hosts)"
    case $verb in
        up) up "${@:2}" ;;
        down) down ;;
        hosts) cat "$LAB_DIR/hosts" 2>/dev/null || die "no lab is up (lab.sh up)" ;;
        reset)
            [[ -f $LAB_DIR/hosts ]] || die "no lab is up (lab.sh up)"
            reset
            ;;
        ssh-config) echo /etc/ssh/ssh_config ;;
        exec) as "$2" root "${@:3}" ;;
        as) as "${@:2}" ;;
        cut) switch nft "add element bridge lab cut { $2 }" ;;
        linkdown) nsenter --target "$(pid_in "$LAB_DIR/$2/power.pid")" --net ip link set dev eth0 down ;;
        delay) impair "$2" 0 "$3" ;;
        loss) impair "$2" 1 "$3" ;;
        rate) impair "$2" 2 "$3" ;;
        heal) heal "$2" ;;
        freeze) signal_all "$2" STOP ;;
        thaw) signal_all "$2" CONT ;;
        kill) power_off "$2" ;;
        start) start "$2" ;;
        selftest) exec "$HERE/selftest.sh" ;;
        *) usage ;;
    esac
}

main "$@"
