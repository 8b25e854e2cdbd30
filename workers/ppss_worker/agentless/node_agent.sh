# The half of PPSS that runs on an agentless node, by bash >= 4 with nothing but mkdir, mv, rm and tar. It comes in on
# stdin, and what follows there are requests, one line each, with lines of values after some (protocol.py).
#
#   agent     reads requests; each command has a supervisor, a fork of the agent, which tells how it ended
#   guard     kills all commands and removes all files when the agent ends, however, or hears nothing for too long
#             (node_guard.sh)
#
# BASE/.ppss.KEY.NUMBER/           the session; `owners` has who lives in it, `end` is there when it is to end
#   ATTEMPT/work, out, ref         the command's directory, $OUTPUT_DIR, and a sign of each file that was brought to work
#   ATTEMPT/stdout, stderr, jobs   what the command printed, what bash says of its end
#   ATTEMPT/*.pid                  numbers of process groups that are to be killed with the session; empty: none
#
# Names begin with p_, as a command may be given variables of any other.

p_umask=$(umask)
p_locale=${LC_ALL-unset}
LC_ALL=C # bytes are bytes
p_backslash='\'
shopt -s dotglob nullglob
shopt -u patsub_replacement 2> /dev/null # of bash 5.2
exec {p_never}<> <(:)                    # what never has anything to read

p_pause() { IFS= read -r -t "$1" -u "$p_never" p_nothing; }

# Reads on in the line p_got, for p_tick seconds at most: 0 when it is whole, 1 when it is not yet, 2 at the end of stdin.
# A signal may end a read as well, so the end is asked for twice.
p_read_on() {
  local part status tries
  for tries in 1 2 3; do
    IFS= read -r -t "$p_tick" part
    status=$?
    p_got+=$part
    ((status == 0)) && return 0
    ((status > 128)) && return 1
  done
  return 2
}

# Hundredths of a second since the boot, into p_now. Where only the clock tells, a change of it shows.
p_look_at_clock() {
  if read -r p_now p_nothing 2> /dev/null < /proc/uptime; then
    p_now=$((10#${p_now/./}))
  else
    p_now=$((SECONDS * 100))
  fi
}

# When process $1 was started, into p_born, to tell it from a later one with its number.
p_look_at_process() {
  local stat
  p_born=
  if ! read -r stat 2> /dev/null < /proc/self/stat; then
    kill -0 "$1" 2> /dev/null
    return
  fi
  read -r stat 2> /dev/null < "/proc/$1/stat" || return
  set -f -- ${stat##*) }
  p_born=${20}
  set +f
}

# Puts text $1 into p_line so that it is one line, and one field of it.
p_encode() {
  p_line=${1//"$p_backslash"/$p_backslash$p_backslash}
  p_line=${p_line//$'\n'/${p_backslash}n}
  p_line=${p_line//$'\t'/${p_backslash}t}
}

# Removes a tree, even where a command closed a directory of it.
p_remove() {
  rm -rf -- "$1" 2> /dev/null || { chmod -R u+rwX -- "$1" && rm -rf -- "$1"; } 2> /dev/null
}

# What the command printed into file $1, into p_line; fails where that is much, or has a NUL.
p_printed() {
  local text
  if IFS= read -r -d '' -n 1200 text < "$1"; then return 1; fi
  p_encode "$text"
}

# What the command left beside its item, into p_beside: the first that is not wanted (p_wanted). Those go to out.
p_look_beside() {
  local path name wanted
  p_beside=
  for path in work/*; do
    name=${path#work/}
    if [[ -e ref/$name || -L ref/$name ]]; then
      [[ -f $path && ! -L $path && ($path -nt ref/$name || $path -ot ref/$name) ]] || continue
      p_beside="changed $name"
    else
      p_beside="new $name"
    fi
    for wanted in "${p_wanted[@]}"; do
      [[ $name == "$wanted" ]] || continue
      if [[ -e out/$name || -L out/$name ]]; then
        p_beside="both $name"
      else
        mv -- "$path" "out/$name" && p_beside=
      fi
    done
    [[ $p_beside ]] && return
  done
}

# Becomes the command: p_functions, p_variables, p_words.
p_become() {
  local function
  trap - PIPE CHLD
  cd work || exit
  if [[ $p_locale == unset ]]; then unset LC_ALL; else LC_ALL=$p_locale; fi
  umask "$p_umask"
  for function in "${p_functions[@]}"; do
    eval "$function" && export -f "${function%% *}"
  done
  shopt -u dotglob nullglob
  export -- PPSS_WORKER_KEY="${p_session##*/}" "${p_variables[@]}"
  exec -- "${p_words[@]}"
}

p_fail() { # attempt $1 can't be begun here
  printf 'failed\t%s\n' "$1"
  exit
}

# The supervisor of attempt $1: starts its command in a process group of its own, and tells how that ended.
p_supervise() {
  local pid status said text out
  exec {p_pipe}>&- < /dev/null
  trap - PIPE
  cd "$p_session" || p_fail "$1"
  if [[ ! -e $1 ]]; then mkdir "$1" "$1/work" "$1/out" "$1/ref" || p_fail "$1"; fi
  cd "$1" && : > stdout > stderr > jobs || p_fail "$1"
  trap 'jobs > jobs 2> /dev/null' CHLD # bash tells an exit with 137 from a SIGKILL only here
  set -m
  (p_become) > stdout 2>> stderr &
  pid=$!
  set +m
  if ! printf '%s\n' "$pid" > run.pid; then # the disk is full
    kill -KILL -- "-$pid" 2> /dev/null
    p_fail "$1"
  fi
  printf 'started\t%s\n' "$1"
  while :; do
    wait "$pid" 2> /dev/null
    status=$?
    said=
    read -r p_nothing said < jobs
    [[ $said == Stopped* || $said == Running* ]] || break
    p_pause 0.1
  done
  [[ -e ../owners && ! -e ../end ]] || exit
  kill -KILL -- "-$pid" 2> /dev/null
  : > run.pid
  [[ $said == '' || $said == Exit* || $said == Done* ]] || status=$((128 - status))
  p_beside=
  if ((status == 0)); then
    p_look_beside
    p_encode "$p_beside"
    p_beside=$p_line
  fi
  out=(out/*)
  said=$status$'\t'${#out[@]}$'\t'$p_beside
  if p_printed stdout; then
    text=$p_line
    p_printed stderr && ((${#text} + ${#p_line} < 2400)) && said+=$'\t='$text$'\t='$p_line
  fi
  printf 'ended\t%s\t%s\n' "$1" "$said"
}

p_count_cores() {
  local line
  p_cores=0
  while read -r line; do
    [[ $line == processor[[:space:]]* ]] && ((p_cores++))
  done 2> /dev/null < /proc/cpuinfo
  ((p_cores)) || p_cores=1
}

p_measure_memory() { # in kB
  local name amount unit
  p_memory=0
  while read -r name amount unit; do
    [[ $name == MemTotal: ]] && p_memory=$amount
  done 2> /dev/null < /proc/meminfo
}

# Tells which GPUs are visible by what the environment says, or what nvidia-smi printed, within 20 s; it may hang for ever.
p_tell_gpus() {
  local pid line said= status=- smi
  exec {p_pipe}>&- < /dev/null
  if [[ ${CUDA_VISIBLE_DEVICES+set} ]]; then
    p_encode "$CUDA_VISIBLE_DEVICES"
    printf 'gpus\tvisible\t%s\n' "$p_line"
    return
  fi
  type -P nvidia-smi > /dev/null || { printf 'gpus\tvisible\t\n'; return; }
  exec {smi}< <(
    set -m # in a group of its own
    (
      printf '%s\n' "$BASHPID"
      nvidia-smi --query-gpu=index --format=csv,noheader 2>&1
      printf '\n=%s\n' $?
    ) &
  )
  read -r pid <&"$smi"
  SECONDS=0
  while ((SECONDS < 20)) && IFS= read -r -t "$((20 - SECONDS))" line <&"$smi"; do
    [[ $line == =* ]] && status=${line#=} && break
    [[ $line ]] && ((${#said} < 2000)) && said+=$line$'\n'
  done
  [[ $status == - ]] && kill -KILL -- "-$pid" 2> /dev/null
  p_encode "$said"
  printf 'gpus\tlisted\t%s\t%s\n' "$status" "$p_line"
}

# Reads $1 lines of values into p_values.
p_read_values() {
  local count=$1 value status
  p_values=()
  while ((count-- > 0)); do
    p_got=
    while p_read_on; status=$?; ((status)); do
      ((status == 2)) && exit
    done
    printf -v value %b "$p_got"
    p_values+=("$value")
  done
}

p_kill() {
  local pid= tries
  for ((tries = 0; tries < 100; tries++)); do # it was asked to begin just now
    [[ -e $p_session/$1/run.pid ]] && read -r pid < "$p_session/$1/run.pid" && break
    [[ -e $p_session/$1/run.pid && ! -s $p_session/$1/run.pid ]] && break
    p_pause 0.01
  done
  [[ $pid ]] || return
  kill -s "$2" -- "-$pid"
  [[ $2 == KILL ]] || kill -s CONT -- "-$pid"
} 2> /dev/null

p_handle() {
  case $1 in
    run)
      p_read_values "$3"; p_functions=("${p_values[@]}")
      p_read_values "$4"; p_variables=("${p_values[@]}")
      p_read_values "$5"; p_words=("${p_values[@]}")
      p_read_values "$6"; p_wanted=("${p_values[@]}")
      p_supervise "$2" &
      ;;
    kill) p_kill "$2" "$3" ;;
    forget)
      (exec {p_pipe}>&- < /dev/null; p_remove "$p_session/$2") &
      ;;
    beat) printf '%s\n' "$(($2 + $3))" >&"$p_pipe" || p_unguarded ;;
  esac
}

p_unguarded() { # somebody killed the guard
  p_end_session "$p_session"
  printf 'gone\n'
  exit
}

# $1: what answers begin with at first; $2: key of the worker; $3: number of the session; $4: hundredths of a second
# that commands may live without a word from the worker, from its birth on; $5: BASE, or nothing; $6: as for `nice`;
# $7: 1 if it is to tell which GPUs there are.
p_agent() {
  local line next_beat=0 base=${5:-$HOME} program missing=
  (($6)) && ! renice -n "$6" -p "$BASHPID" > /dev/null 2>&1 && missing=" renice"
  for program in mkdir mv rm tar; do
    type -P "$program" > /dev/null || missing+=" $program"
  done
  p_encode "$base"
  if ((BASH_VERSINFO[0] < 4)); then
    printf '\n%s refuse\tbash\t%s\n' "$1" "$BASH_VERSION"
    exit
  elif [[ $missing ]]; then
    printf '\n%s refuse\tmissing\t%s\n' "$1" "$missing"
    exit
  fi
  p_session=$base/.ppss.$2.$3
  p_agent=$BASHPID
  umask 077
  if ! missing=$(mkdir -p -- "$base" 2>&1 && mkdir -- "$p_session" 2>&1); then
    p_encode "${missing##*: }"
    printf '\n%s refuse\tscratch\t%s\n' "$1" "$p_line"
    exit
  fi
  trap '' PIPE
  p_tick=1
  (($4 < 600)) && p_tick=0.3
  p_look_at_clock
  p_host=$HOSTNAME
  if read -r line 2> /dev/null < /etc/machine-id; then p_host+=" $line"; fi
  p_look_at_process "$p_agent"
  printf '%s\n' "$p_host" "$p_agent $p_born" > "$p_session/owners"
  set -m # the guard in a group of its own
  exec {p_pipe}> >(p_guard "$((p_now + $4))")
  set +m
  p_sweep "$base" "$2"
  p_count_cores
  p_measure_memory
  p_encode "$p_session"
  printf '\n%s hello\t%s\t%s\t%s\t%s\n' "$1" "$p_line" "$p_cores" "$p_alone" "$p_memory"
  if (($7)); then
    p_tell_gpus &
    disown -a
  fi
  p_got=
  while :; do
    p_look_at_clock
    if ((p_now >= next_beat)); then
      line=
      { read -r line _ < /proc/loadavg; } 2> /dev/null
      printf 'beat\t%s\t%s\n' "$p_now" "$line"
      next_beat=$((p_now + $4 / 6))
    fi
    p_read_on
    case $? in
      0)
        line=$p_got
        p_got=
        p_handle $line
        disown -a # or bash would remember them all
        p_got=
        ;;
      2) break ;;
    esac
  done
}
