# The worker of a node, seen from the node. It is executed there by bash with these arguments:
#   start PLACE LABEL UNIT PROGRAM SECONDS ENABLE   prints "running|started PID yes|"; 1: it ended, stderr says why
#   running PLACE LABEL UNIT                        prints PID; 1: there is none
#   stop  PLACE LABEL UNIT SECONDS NOW              0: it ends, or is gone; 1: there was none
#   needed PLACE LABEL UNIT                         0: a worker is at work, or comes back with the machine; 1: none
# PLACE is the directory of workers, LABEL which one, PROGRAM the text of its LABEL.sh, ENABLE and NOW "yes" or empty.
# 5: this machine can't do it.
verb=$1 place=$2 label=$3 unit=$4
script=$place/$label.sh pid_file=$place/$label.pid
units=${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user
pid=

alive() { # sets pid
    pid=$(cat "$pid_file" 2>/dev/null)
    [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null \
        && { cat "/proc/$pid/cmdline" 2>/dev/null || ps -o args= -p "$pid"; } | grep -qaF "$pid_file"
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
    crontab -l 2>/dev/null | grep -qF "$script"
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
        (crontab -l 2>/dev/null && echo "@reboot $script") | crontab - \
            || echo "@reboot $script" | crontab -
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

stop() {
    local seconds=$1 now=$2 rest
    if [ -e "$units/$unit" ]; then
        managed && systemctl --user disable --quiet "$unit" 2>/dev/null
        alive || systemctl --user stop "$unit" 2>/dev/null # it may wait to be started again
        rm -f "$units/$unit" "$units/default.target.wants/$unit"
        managed && systemctl --user daemon-reload
    fi
    if in_crontab; then
        rest=$(crontab -l | grep -vF "$script")
        if [ -n "$rest" ]; then printf '%s\n' "$rest" | crontab -; else crontab -r; fi
    fi
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
