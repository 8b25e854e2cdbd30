# The worker of a node, seen from the node. It is executed there by bash with these arguments:
#   start PLACE LABEL UNIT PROGRAM SECONDS ENABLE   prints "running|started PID yes|"; 1: it ended, stderr says why
#   running PLACE LABEL UNIT                        prints PID; 1: there is none
#   stop  PLACE LABEL UNIT SECONDS NOW              0: it ends, or is gone; 1: there was none
#   disable PLACE LABEL UNIT                        it does not come back with the machine any more
#   needed PLACE LABEL UNIT                         0: a worker is at work, or comes back with the machine; 1: none
# PLACE is the directory of workers, LABEL which one, PROGRAM the text of its LABEL.sh, ENABLE and NOW "yes" or empty.
# 5: this machine can't do it.
verb=$1 place=$2 label=$3 unit=$4
script=$place/$label.sh pid_file=$place/$label.pid loop_file=$place/$label.loop
units=${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user
pid=

is_there() { # the process that wrote its number into file $1, and was given the text $2; sets pid
    pid=$(cat "$1" 2>/dev/null)
    [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null \
        && { cat "/proc/$pid/cmdline" 2>/dev/null || ps -o args= -p "$pid"; } | grep -qaF "$2"
}

alive() { # the worker; sets pid
    is_there "$pid_file" "$pid_file"
}

moment() { # a tenth of a second, where sleep may know whole ones only
    read -rt 0.1 <> <(:)
}

managed() { # whether systemd keeps for this user what it started, when nobody is logged in
    export XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/run/user/$(id -u)}
    [ -S "$XDG_RUNTIME_DIR/bus" ] && systemctl --user show-environment >/dev/null 2>&1 || return 1
    [ "$(loginctl show-user "$(id -un)" -p Linger --value 2>/dev/null)" = yes ] && return
    loginctl --no-ask-password enable-linger 2>/dev/null && : >"$place/lingers" # for whoever erases
}

in_crontab() {
    crontab -l 2>/dev/null | grep -qF "# $unit"
}

add_to_crontab() { # after a reboot the master may be off for longer: a worker that does not find it ends with 3
    local quote="'\\''" line
    line="echo \$\$ >'${loop_file//\'/$quote}'; until '${script//\'/$quote}'; [ \$? -ne 3 ]; do sleep 5; done # $unit"
    {
        crontab -l 2>/dev/null
        printf '@reboot %s\n' "${line//%/\\%}"
    } | crontab -
}

remove_from_crontab() {
    local rest
    rest=$(crontab -l | grep -vF "# $unit")
    if [ -n "$rest" ]; then printf '%s\n' "$rest" | crontab -; else crontab -r; fi
}

comes_back() { # "yes" if it is started with the machine
    if [ -L "$units/default.target.wants/$unit" ] || in_crontab; then echo yes; fi
}

start_with_systemd() {
    local directory
    if [ "$label" != worker ]; then # nothing of it is to stay
        systemd-run --user --collect --quiet --unit="$unit" -p KillMode=mixed -p TimeoutStopSec=infinity "$script" || return
        first=$(systemctl --user show -p MainPID --value "$unit")
        return
    fi
    for directory in "$units/default.target.wants" "$units" "${units%/*}" "${units%/*/*}"; do
        [ -e "$directory" ] || echo "$directory"
    done >>"${place%/masters/*}/made" # for whoever erases
    mkdir -p "$units" || return
    # Homes may be shared between machines: only this one is meant.
    # After a reboot the master may be off for longer: a worker that does not find it ends with 3.
    printf '%s\n' '[Unit]' 'Description=worker of PPSS' "ConditionHost=$(cat /etc/machine-id)" StartLimitIntervalSec=0 '' \
        '[Service]' "ExecStart=\"$script\"" KillMode=mixed TimeoutStopSec=infinity RestartForceExitStatus=3 RestartSec=5 '' \
        '[Install]' WantedBy=default.target >"$units/$unit" || return
    systemctl --user daemon-reload && systemctl --user restart "$unit" || return
    first=$(systemctl --user show -p MainPID --value "$unit")
    [ -z "$enable" ] || systemctl --user enable --quiet "$unit"
}

start_alone() {
    trap '' HUP # of the connection's end
    set -m # a process group of its own, and Ctrl-C's signal not ignored
    "$script" &
    first=$!
    if [ -n "$enable" ] && ! in_crontab; then
        add_to_crontab
    fi
}

sweep() { # what workers of runs left that are over
    local pid pid_file
    for pid_file in "$place"/run-*.pid; do
        [ -e "$pid_file" ] && ! alive && rm -f "$pid_file" "${pid_file%.pid}.sh"
    done
}

start() {
    local program=$1 seconds=$2 enable=$3 size first
    cd "$place" || return 5
    if alive; then
        echo "running $pid $(comes_back)"
        return
    fi
    sweep
    printf '%s' "$program" >"$script.new" && chmod 700 "$script.new" && mv -f "$script.new" "$script" || return 5
    size=$( (wc -c <worker.log) 2>/dev/null || echo 0)
    if [ "$size" -gt 8388608 ]; then
        mv -f worker.log worker.log.1
        size=0
    fi
    : >"$pid_file" || return 5
    if managed; then start_with_systemd || return 5; else start_alone || return 5; fi
    for ((tenths = 0; tenths < seconds * 10; tenths++)); do
        if alive; then
            echo "started $pid $(comes_back)"
            return
        fi
        kill -0 "$first" 2>/dev/null || break
        moment
    done
    [ ! -e "$units/$unit" ] || systemctl --user stop "$unit" 2>/dev/null
    tail -c +$((size + 1)) worker.log | tail -n 1 >&2
    return 1
}

stop_waiting() { # a worker that did not find the master is to be started again
    if alive; then return; fi
    [ ! -e "$units/$unit" ] || ! managed || systemctl --user stop "$unit" 2>/dev/null
    ! is_there "$loop_file" "# $unit" || kill -TERM -- "-$pid" 2>/dev/null || kill -TERM "$pid"
}

disable() {
    stop_waiting
    if [ -e "$units/$unit" ]; then
        managed && systemctl --user disable --quiet "$unit" 2>/dev/null
        rm -f "$units/$unit" "$units/default.target.wants/$unit"
        managed && systemctl --user daemon-reload
    fi
    if in_crontab; then remove_from_crontab; fi
}

stop() {
    local seconds=$1 now=$2
    stop_waiting
    alive || return 1
    if [ -z "$now" ]; then
        kill -TERM "$pid"
        return
    fi
    kill -INT "$pid"
    for ((tenths = 0; tenths < seconds * 10; tenths++)); do
        alive || return 0
        if ((tenths == seconds * 5)); then kill -INT "$pid"; fi
        moment
    done
    kill -KILL "$pid"
}

running() {
    alive && echo "$pid"
}

needed() {
    local pid_file
    for pid_file in "$place"/*.pid; do
        if alive; then return; fi
    done
    [ -n "$(comes_back)" ]
}

"$verb" "${@:5}"
exit
