# walk.sh DIR: the life of DIR/old.deb and DIR/new.deb on a host, in a root of its own. It
# runs in mount, process and network namespaces that are thrown away.
set -eu
packages=$1
top=$(mktemp -d)
mount -t tmpfs tmpfs "$top"
mkdir "$top/up" "$top/work" "$top/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$top/up,workdir=$top/work" "$top/root"
mkdir -p "$top/root/packages"
mount --bind "$packages" "$top/root/packages"
mount -t proc proc "$top/root/proc"
mount --bind /dev "$top/root/dev"
for d in run tmp; do mount -t tmpfs tmpfs "$top/root/$d"; done
ip link set lo up
cat >"$top/root/tmp/steps" <<'STEPS'
set -eu
trap 'echo "FAILED in line $LINENO: $BASH_COMMAND"' ERR
export DEBIAN_FRONTEND=noninteractive PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
unset QRBD_CONFIG || true
say() { echo "== $*"; }
fail() { echo "FAILED: $*"; exit 1; }
# systemctl as it would answer on a host whose qrbd.service runs; it only takes notes.
mkdir -p /run/systemd/system /usr/local/bin
cat >/usr/local/bin/systemctl <<'END'
#!/bin/sh
case $* in *preset*) exec /bin/systemctl "$@" ;; esac
echo "$*" >>/tmp/systemctl
END
chmod +x /usr/local/bin/systemctl
: >/tmp/systemctl
told() { grep -q -- "$1" /tmp/systemctl; }

rm -f /var/lib/man-db/auto-update # the index of the manual pages is not what this is about
say "install"
dpkg -i /packages/old.deb
test "$(qrbd version)" = "qrbd 1.1"
old=$(stat -c %i /usr/bin/qrbd)
man --warnings -l /usr/share/man/man8/qrbd.8.gz 2>/tmp/man >/tmp/page
test ! -s /tmp/man
grep -q "qrbd switchover VOLUME --to PEER" /tmp/page
dpkg-query -W -f='${Conffiles}' qrbd | grep -q /etc/qrbd/example.toml
dpkg-query -W -f='${Conffiles}' qrbd | grep -q /etc/default/qrbd
test ! -e /etc/qrbd/qrbd.toml
told "start qrbd.service"
test -L /etc/systemd/system/multi-user.target.wants/qrbd.service
systemd-analyze verify --man=no /lib/systemd/system/qrbd.service /lib/systemd/system/qrbd-attach@crm.service
systemd-analyze security --offline=yes /lib/systemd/system/qrbd.service | tail -1
qrbd config check --config /etc/qrbd/example.toml
/usr/lib/ocf/resource.d/qrbd/volume meta-data | grep -q 'resource-agent name="volume"'
test -x /usr/lib/qrbd/qrbd-fence-pacemaker -a -s /usr/share/doc/qrbd/PACEMAKER.md
bash -c 'source /usr/share/bash-completion/completions/qrbd; COMP_WORDS=(qrbd dest) COMP_CWORD=1; _qrbd; test "${COMPREPLY[*]}" = destroy
	COMP_WORDS=(qrbd promote --peer) COMP_CWORD=2; _qrbd; test "${COMPREPLY[*]}" = --peer-fenced'

say "a volume with a client"
qrbd init --name alpha --listen 127.0.0.1:7790 >/dev/null
cat >>/etc/qrbd/qrbd.toml <<'END'
[[volume]]
name = "crm"
size = "64MiB"
backing = "/var/lib/qrbd/crm.img"
export = "unix:/run/qrbd/crm.sock"
END
qrbd create crm
setsid qrbd agent >/tmp/agent.log 2>&1 &
agent=$!
until qrbd status >/dev/null 2>&1; do sleep 0.05; done
qrbd promote crm --force
mkfifo /tmp/go
nbdsh -u 'nbd+unix:///crm?socket=/run/qrbd/crm.sock' -c '
h.pwrite(b"order 4711", 0)
open("/tmp/go").read()
assert h.pread(10, 0) == b"order 4711"
h.flush()
' &
client=$!
until qrbd status --json | grep -q '"clients":1'; do sleep 0.05; done

say "upgrade under the running volume"
echo '# mine' >>/etc/default/qrbd
: >/tmp/systemctl
dpkg -i --force-confdef --force-confold /packages/new.deb | tee /tmp/out
grep -q "left as it is" /tmp/out
if told restart; then fail "an agent with clients was restarted"; fi
kill -0 $agent
test "$(stat -c %i /usr/bin/qrbd)" != "$old"
test "$(dpkg-query -W -f='${Version}' qrbd)" = 1.1
qrbd status --json | grep -q '"clients":1'
grep -q mine /etc/default/qrbd

say "removal is refused while there is a client"
if dpkg -r qrbd >/tmp/out 2>&1; then cat /tmp/out; fail "the package was removed from under a client"; fi
grep -q "has clients" /tmp/out
kill -0 $agent
dpkg-query -W -f='${Status}' qrbd | grep -q 'ok installed' # what is wanted is not what is
echo >/tmp/go
wait $client

say "upgrade of an idle one: the agent is restarted"
until qrbd status --json | grep -q '"clients":0'; do sleep 0.05; done
: >/tmp/systemctl
dpkg -i /packages/new.deb >/dev/null
told "try-restart qrbd.service"

say "remove"
: >/tmp/systemctl
cat >/usr/local/bin/systemctl <<'END'
#!/bin/sh
echo "$*" >>/tmp/systemctl
case $* in *is-active*) exit 3 ;; esac
END
if dpkg -r qrbd >/tmp/out 2>&1; then fail "the package was removed from under an agent"; fi
grep -q "systemd did not start" /tmp/out
kill -TERM $agent
wait $agent
grep -q "agent stopping" /tmp/agent.log
dpkg -r qrbd
told "stop qrbd-attach@\*.service qrbd.service"
test ! -e /usr/bin/qrbd
test -e /etc/qrbd/qrbd.toml -a -e /etc/qrbd/example.toml -a -e /var/lib/qrbd/crm.meta

say "purge leaves what is a replica"
dpkg -P qrbd
test ! -e /etc/qrbd -a ! -e /etc/default/qrbd
test -e /var/lib/qrbd/crm.meta -a -e /var/lib/qrbd/crm.img -a -e /var/lib/qrbd/identity.key

say "and nothing once there is none"
dpkg -i /packages/new.deb >/dev/null
qrbd init --name alpha --listen 127.0.0.1:7790 >/dev/null
cat >>/etc/qrbd/qrbd.toml <<'END'
[[volume]]
name = "crm"
size = "64MiB"
backing = "/var/lib/qrbd/crm.img"
export = "unix:/run/qrbd/crm.sock"
END
qrbd destroy crm --yes --force --backing --archives
dpkg -P qrbd
test ! -e /var/lib/qrbd -a ! -e /etc/qrbd
say "all done"
STEPS
chroot "$top/root" bash /tmp/steps
