"""A lab host that systemd looks after: pid 1 of its own, logins, and a manager for each user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from helpers import missing, wait_until
from hosts.lab import Host


@contextmanager
def systemd_on(host: Host) -> Iterator[None]:
    """Has systemd run the host until it is reset; after a `kill` and `start`, `boot` is what is missing."""
    if host.run(["test", "-x", "/usr/lib/systemd/systemd"], check=False).returncode:
        missing("systemd")
    try:
        boot(host)
        yield
    finally:
        host.kill()
        host.start()
        host.run(["bash", "-ec", f"{_GROUP}\nfind $group -depth -type d -exec rmdir {{}} +"], user="root")


def boot(host: Host) -> None:
    """Start systemd on a host that is on, and wait until it lets users in."""
    host.popen(["bash", "-ec", f"{_GROUP}\n{_BOOT}"], user="root")
    wait_until(
        lambda: host.run(["sh", "-c", _IS_UP], user="root", check=False).returncode == 0, "systemd is up", 60
    )


_GROUP = """
mkdir /tmp/groups
mount -t cgroup2 none /tmp/groups
group=/tmp/groups/ppss-lab-$(cat /etc/machine-id)
"""
_BOOT = """
pkill -KILL -x sshd
cat >/etc/systemd/system/lab.target <<END
[Unit]
Requires=basic.target
Wants=dbus.socket systemd-logind.service systemd-user-sessions.service lab-sshd.service
After=basic.target
END
cat >/etc/systemd/system/lab-sshd.service <<END
[Service]
ExecStart=/usr/sbin/sshd -D -o UsePAM=yes -E /var/log/sshd.log
RuntimeDirectory=sshd
KillMode=process
END
mkdir -p "$group"
echo $$ >"$group/cgroup.procs"
umount /tmp/groups
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    unshare --cgroup --mount --pid --fork --kill-child --mount-proc bash -ec '
        mount -t cgroup2 none /sys/fs/cgroup
        for unit in lvm2-monitor systemd-timesyncd systemd-udevd systemd-update-utmp; do
            ln -sf /dev/null /etc/systemd/system/$unit.service
        done
        exec /usr/lib/systemd/systemd --unit=lab.target --show-status=false >/var/log/systemd.log 2>&1'
"""
_IS_UP = "[ -S /run/dbus/system_bus_socket ] && [ ! -e /run/nologin ] && [ -e /run/systemd/sessions ] && pgrep -x sshd"
