# init.sh TOP NAME POWER: the first process of a machine. It makes the machine's root,
# starts what an installed host starts, and reaps what dies. Everything ends with it.
set -eu
top=$1 name=$2 power=$3
hostname "$name"
root=$top/root
mkdir -p "$top/up" "$top/work" "$top/data" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$top/up,workdir=$top/work" "$root"
cd "$root"
mount -t proc proc proc
mount --rbind /sys sys
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=1777 tmpfs dev/shm
for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 fuse:10:229 loop-control:10:237; do
	IFS=: read -r file major minor <<<"$node"
	mknod -m 666 "dev/$file" c "$major" "$minor"
done
for i in $(seq 0 127); do mknod -m 660 "dev/loop$i" b 7 "$i"; done
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mkdir -p run/lock run/qrbd var/lib/qrbd power srv/crm
mount --bind "$top/data" var/lib/qrbd
mount --bind "$power" power
mkdir -p old
pivot_root . old
cd /
umount -l /old

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
mkdir -p /var/log/corosync /var/log/pacemaker
# As systemd does: qrbd before Pacemaker, anew when it has failed.
while [ ! -e /run/no-agent ]; do
	qrbd agent >>/var/log/qrbd.log 2>&1 </dev/null || true
	sleep 1
done &
for _ in $(seq 100); do
	qrbd status >/dev/null 2>&1 && break
	sleep 0.1
done
if [ -e /etc/corosync/enabled ]; then cluster-start; fi
touch /run/booted
while :; do sleep 1000 & wait $! || true; done
