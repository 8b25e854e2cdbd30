# What the command of attempt $2 of session $1 wrote to $OUTPUT_DIR, as a tar stream; before it, paths that their owner
# may not read, each with the permissions that it was lent, and an empty line.
export PPSS_WORKER_KEY="${1##*/}"
LC_ALL=C
shopt -s dotglob nullglob
shopt -u patsub_replacement 2> /dev/null # of bash 5.2
backslash='\'
cd -- "$1/$2/out" && echo $$ > ../out.pid || exit

open_up() { # $1: a directory, and a slash; or nothing
  local path bits name lent
  for path in "$1"*; do
    [[ -L $path ]] && continue
    bits=0
    if [[ -d $path ]]; then
      [[ -r $path ]] || ((bits += 256))
      [[ -x $path ]] || ((bits += 64))
    elif [[ -f $path && ! -r $path ]]; then
      bits=256
    fi
    if ((bits)); then
      name=${path//"$backslash"/$backslash$backslash}
      name=${name//$'\n'/${backslash}n}
      name=${name//$'\t'/${backslash}t}
      lent=u+r
      [[ -d $path ]] && lent=u+rx
      chmod "$lent" -- "./$path" 2> /dev/null || bits=!
      printf '%s\t%s\n' "$bits" "$name"
    fi
    [[ -d $path ]] && open_up "$path/"
  done
}

((EUID == 0)) || open_up ''
printf '\n'
tar -cf - .
status=$?
: > ../out.pid
exit $status
