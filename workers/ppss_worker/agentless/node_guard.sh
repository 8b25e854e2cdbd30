# The guard of an agent's session, and what it shares with the agent: how a session ends, and what dead ones left.
# Sent behind node_agent.sh, whose functions it uses.

# Kills all that belongs to session $1, in whatever group, as far as /proc shows it.
p_kill_marked() {
  local file entry found=1 scans
  for ((scans = 0; found && scans < 20; scans++)); do
    found=
    for file in /proc/[0-9]*/environ; do
      while IFS= read -r -d '' entry; do
        if [[ $entry == "PPSS_WORKER_KEY=${1##*/}" ]]; then
          file=${file%/environ}
          kill -KILL "${file##*/}" && found=1
          break
        fi
      done < "$file"
    done 2> /dev/null
  done
}

# Ends all commands of session $1, and all trace of it.
p_end_session() {
  local file group groups=() tries
  : > "$1/end" # first: no supervisor tells of an end that is our doing
  for file in "$1"/*/*.pid; do
    group=
    read -r group < "$file"
    [[ $group ]] && groups+=("-$group")
  done
  if ((${#groups[@]})); then
    kill -TERM -- "${groups[@]}"
    kill -CONT -- "${groups[@]}"
    for ((tries = 0; tries < 20; tries++)); do
      kill -0 -- "${groups[@]}" || break
      p_pause 0.1
    done
    kill -KILL -- "${groups[@]}"
  fi 2> /dev/null
  p_kill_marked "$1"
  for ((tries = 0; tries < 20; tries++)); do # what was killed just now may still have made a file
    p_remove "$1"
    [[ -e $1 ]] || break
    p_pause 0.1
  done
}

# Whether anybody lives in session $1; one of another host, which shares the directory, is left to that.
p_is_inhabited() {
  local host pid born
  {
    IFS= read -r host && [[ $host == "$p_host" ]] || return 0
    while read -r pid born; do
      p_look_at_process "$pid" && [[ $p_born == "$born" ]] && return
    done
  } 2> /dev/null < "$1/owners"
  return 1
}

# Ends earlier sessions of the same worker (key $2), and removes what dead ones of any worker left below $1. p_alone:
# 1 if no command of an earlier session of this worker can run any more.
p_sweep() {
  local old tries
  p_alone=1
  for old in "$1"/.ppss.*.*/; do
    old=${old%/}
    [[ $old == "$p_session" ]] && continue
    if [[ ${old##*/} == ".ppss.$2."* ]]; then
      : > "$old/end"
      for ((tries = 0; tries < 100; tries++)); do
        [[ -e $old ]] && p_is_inhabited "$old" || break
        p_pause 0.1
      done 2> /dev/null
      [[ -e $old ]] && p_is_inhabited "$old" && p_alone=0
    fi
    if [[ -e $old/owners ]] && ! p_is_inhabited "$old"; then
      : > "$old/end"
      p_kill_marked "$old"
      p_remove "$old"
    fi
  done
}

# The guard: on stdin come the moments until which the agent may live.
p_guard() {
  local deadline=$1
  p_got=
  trap '' INT TERM HUP
  local agent_born=$p_born
  p_look_at_process "$BASHPID"
  printf '%s\n' "$BASHPID $p_born" >> "$p_session/owners"
  while :; do
    p_read_on
    case $? in
      0) deadline=$p_got p_got= ;;
      2) break ;; # the agent is gone
    esac
    p_look_at_clock
    ((p_now > deadline)) && break
    [[ -e $p_session/end || ! -e $p_session ]] && break
  done
  p_look_at_process "$p_agent" && [[ $p_born == "$agent_born" ]] && kill -KILL "$p_agent" 2> /dev/null
  p_end_session "$p_session"
  printf 'gone\n' 2> /dev/null
}
