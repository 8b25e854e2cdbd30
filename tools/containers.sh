#!/usr/bin/env bash
# Builds the images and tries docker-compose.yml for real: 100 files on three workers, a drain, a restart of Valkey, a
# wrong password. Where no docker answers, root's dockerd is started by hand and ended again; where no registry answers,
# base images are made with debootstrap. Debian: apt-get install docker.io docker-compose debootstrap
set -euo pipefail
work=$(mktemp -d /tmp/ppss-containers.XXXXXX)
export COMPOSE_PROJECT_NAME=ppss-try DATA_DIR=$work/data FILES_DIR=$work/files WORKER_USER=1000:1000 WORKER_PACKAGES=
export VALKEY_PASSWORD=secret DASHBOARD_PASSWORD=look VALKEY_PORT=16379 DASHBOARD_PORT=19181
export PPSS_STATE_DIR=$work/state PPSS_URL=redis://:secret@127.0.0.1:16379
python=python:3.13-slim valkey=valkey/valkey:8-alpine
dockerd=

say() { printf '%s\n' "- $*"; }
stop() {
    printf 'containers: %s\n' "$*" >&2
    exit 1
}
containers() { # SERVICE FORMAT: of ours, whatever else runs here
    docker ps --filter label=com.docker.compose.project=ppss-try --filter "label=com.docker.compose.service=$1" --format "$2"
}
compose() { if docker compose version >/dev/null 2>&1; then docker compose "$@"; else docker-compose "$@"; fi; }

clean() {
    trap '' INT TERM HUP # a second one would leave mounts
    compose down --timeout 5 --remove-orphans >>"$work/log" 2>&1 || true
    [ -z "$dockerd" ] || { kill "$dockerd" 2>/dev/null && wait "$dockerd" || true; }
    # An image of this machine's Debian, overlays, shared memory: whatever is left mounted below, deepest first.
    awk -v below="$work/" 'index($2, below) == 1 {print $2}' /proc/mounts | sort -r | xargs -r -n1 umount -l || true
    rm -rf "$work"
}
trap clean EXIT

start_dockerd() {
    [ "$(id -u)" -eq 0 ] && command -v dockerd >/dev/null || stop "no docker answers, and there is no dockerd to start as root"
    export DOCKER_HOST=unix://$work/docker.sock
    dockerd --bridge=none --iptables=false --data-root "$work/docker" --exec-root "$work/exec" \
        --pidfile "$work/dockerd.pid" -H "$DOCKER_HOST" >"$work/dockerd.log" 2>&1 </dev/null &
    dockerd=$!
    for _ in $(seq 100); do docker info >/dev/null 2>&1 && return; sleep 0.2; done
    stop "dockerd does not start: $(tail -3 "$work/dockerd.log")"
}

# Debian with what the official images have, as far as PPSS sees it.
make_bases() {
    command -v debootstrap >/dev/null || stop "no registry answers, and there is no debootstrap"
    debootstrap --variant=minbase --include=python3,python3-pip,python3-venv,ca-certificates,valkey-server,valkey-tools \
        trixie "$work/root" http://deb.debian.org/debian >>"$work/log" 2>&1 || stop "debootstrap: $(tail -3 "$work/log")"
    rm -rf "$work"/root/var/cache/apt/*
    for file in /etc/ssl/certs/ca-certificates.crt /etc/pip.conf; do # this machine's way to a package index
        [ ! -e $file ] || cp $file "$work/root$file"
    done
    cat >"$work/root/entrypoint" <<'END'
#!/bin/sh
if [ "$1" = valkey-server ] && [ "$(id -u)" = 0 ]; then
    find . \! -user valkey -exec chown valkey '{}' +
    exec setpriv --reuid=valkey --regid=valkey --clear-groups -- "$@"
fi
exec "$@"
END
    chmod +x "$work/root/entrypoint"
    tar -C "$work/root" -c . | docker import - ppss-try/python >>"$work/log"
    tar -C "$work/root" -c . |
        docker import --change 'ENTRYPOINT ["/entrypoint"]' --change 'WORKDIR /data' - ppss-try/valkey >>"$work/log"
    rm -rf "$work/root"
    python=ppss-try/python valkey=ppss-try/valkey
}

docker info >/dev/null 2>&1 || start_dockerd
for image in $python $valkey; do
    docker image inspect $image >/dev/null 2>&1 || docker pull -q $image >>"$work/log" 2>&1 || { make_bases && break; }
done
export PYTHON_IMAGE=$python VALKEY_IMAGE=$valkey
for target in worker dashboard; do
    docker build -q --network=host -f workers/Dockerfile --build-arg PYTHON_IMAGE=$python --target $target \
        -t ppss-$target . >>"$work/log" 2>&1 || stop "$target is not built: $(tail -5 "$work/log")"
done
say "built from $python: $(docker images --format '{{.Repository}} {{.Size}}' | grep '^ppss-[wd]' | paste -sd, -)"

here=$PWD
ppss() { (cd "$FILES_DIR" && "$here/.venv/bin/ppss" "$@"); } # outside of the containers
count() { ppss status "$run" --json | "$here/.venv/bin/python" -c "import json, sys; print(json.load(sys.stdin)['$1'])"; }
await() { # COUNT AT_LEAST
    for _ in $(seq 200); do [ "$(count "$1")" -lt "$2" ] || return 0; sleep 0.1; done
    stop "$1 of run $run did not come to $2 in 20 s"
}

mkdir -p "$FILES_DIR/in"
find "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" -maxdepth 1 -name '*.py' |
    sort | sed -n 1,100p | xargs cp -t "$FILES_DIR/in"
chmod 777 "$FILES_DIR"
compose up -d --no-build --scale worker=3 >>"$work/log" 2>&1 || stop "compose up: $(tail -5 "$work/log")"

run=$(ppss enqueue in -o out -c 'sleep 0.05; gzip -c "$ITEM" > "$OUTPUT_DIR/$OUTPUT_FILE.gz"')
ppss wait "$run" 2>>"$work/log"
for file in "$FILES_DIR"/in/*.py; do
    zcat "$FILES_DIR/out/${file##*/}.gz" | cmp - "$file" || stop "the output of $file is not right"
done
[ "$(count succeeded)" = 100 ] || stop "100 files, but $(count succeeded) succeeded"
say "100 files, enqueued outside: every output is right"

compose run --rm worker enqueue in -o again -c 'gzip -c {} > {out}.gz' >>"$work/log" 2>&1
run=$(ppss status last --json | grep -o '"run": "[^"]*"' | cut -d'"' -f4)
ppss wait "$run" 2>>"$work/log"
[ "$(find "$FILES_DIR/again" -name '*.gz' | wc -l)" = 100 ] || stop "enqueued in a container: outputs are missing"
say "100 files, enqueued in a container: every output is there"

run=$(seq 20 | ppss enqueue -c 'echo begin >> "log"; sleep 2; (setsid sleep 0.1 &); echo end >> "log"; : {}' 2>>"$work/log")
await running 3
worker=$(containers worker '{{.ID}}' | sed -n 1p)
docker stop --time 30 "$worker" >>"$work/log"
[ "$(docker inspect "$worker" --format '{{.State.ExitCode}}')" = 0 ] || stop "SIGTERM: $(docker logs --tail 3 "$worker" 2>&1)"
say "SIGTERM drains: $(docker logs --tail 1 "$worker" 2>&1)"
docker start "$worker" >>"$work/log"

other=$(containers worker '{{.ID}}' | sed -n 2p)
zombies=$(docker exec "$other" sh -c 'cat /proc/[0-9]*/stat' | grep -c ') Z ' || true)
[ "$zombies" = 0 ] || stop "$zombies zombies in a worker's container"
say "what commands left behind is buried"

compose restart valkey >>"$work/log" 2>&1
ppss wait "$run" 2>>"$work/log" || stop "after a restart of Valkey: $(ppss status "$run")"
[ "$(sort "$FILES_DIR/log" | uniq -c | tr -s ' \n' ' ')" = ' 20 begin 20 end ' ] || stop "not each item ran once: $(sort "$FILES_DIR/log" | uniq -c)"
say "a restart of Valkey under work keeps the run, and each item ran once"

said=$(compose run --rm -e PPSS_URL=redis://:wrong@valkey:6379 worker status 2>&1 | grep '^ppss:' || true)
[ -n "$said" ] || stop "nothing is said of a wrong password"
say "a wrong password: $said"
for code in 401 200; do
    [ $code = 401 ] && login='' || login=ppss:$DASHBOARD_PASSWORD
    got=$(curl -s -o /dev/null -w '%{http_code}' ${login:+-u $login} "http://127.0.0.1:$DASHBOARD_PORT/")
    [ "$got" = $code ] || stop "the dashboard answers $got instead of $code"
done
say "the dashboard wants its password"
said=$(VALKEY_PASSWORD='' compose config 2>&1 >/dev/null) && stop "no password, and no error"
say "a missing password: ${said##*: }"
for service in valkey dashboard worker; do
    for _ in $(seq 400); do containers $service '{{.Status}}' | grep -qv '(healthy)' || break; sleep 0.2; done
    ! containers $service '{{.Status}}' | grep -v '(healthy)' || stop "$service is not healthy"
done
say "all containers are healthy"
