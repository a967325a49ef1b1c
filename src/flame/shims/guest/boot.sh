#!/bin/busybox sh
# The first program of a virtual machine: brings up its disks, then hands over to init.py, which knows the rest.
# The command line of the kernel names the Python to use (flame.python=PATH) and the number of disks (flame.disks=N).
# With flame.apart it is on the last one, which is no part of the root, and has a loader and libraries for it.
B=/bin/busybox
fail() {
	echo "flame: the machine can't start: $1" >&9
	$B usleep 100000
	$B poweroff -f
}
wait_for() {
	n=0
	while [ ! -b "$1" ]; do
		n=$((n + 1))
		[ $n -lt 3000 ] || fail "there is no disk $1"
		$B usleep 10000
	done
}
$B mount -t proc proc /proc
$B mount -t sysfs sysfs /sys
$B mount -t devtmpfs devtmpfs /dev
exec 9>/dev/ttyS0
case " $($B cat /proc/cmdline) " in
*" flame.probe "*)
	echo "flame: booted" >&9
	$B usleep 100000
	$B poweroff -f
	;;
esac
for module in $($B cat /modules/order); do
	$B insmod "/modules/$module" || fail "the module $module can't be loaded"
done
apart=
for word in $($B cat /proc/cmdline); do
	case $word in
	flame.python=*) python=${word#*=} ;;
	flame.disks=*) disks=${word#*=} ;;
	flame.apart) apart=yes ;;
	esac
done
layers=
$B mkdir /layers
$B mount -t tmpfs -o size=1m tmpfs /layers
for name in vda vdb vdc; do
	[ "$disks" -gt 0 ] || break
	disks=$((disks - 1))
	wait_for /dev/$name
	$B mkdir -p /layers/$name
	$B mount -t ext4 -o ro,noload,nodev,nosuid /dev/$name /layers/$name || fail "the disk $name can't be read"
	if [ -n "$apart" ] && [ "$disks" -eq 0 ]; then
		apart=/layers/$name
	else
		layers=/layers/$name${layers:+:$layers}
	fi
done
# Those that something is mounted over come first: in an image they may be links.
$B mkdir -p /layers/ends/proc /layers/ends/sys /layers/ends/dev /layers/ends/run /layers/ends/tmp
$B mount -t overlay -o "ro,nosuid,nodev,lowerdir=/layers/ends:$layers" overlay /root || fail "the disks can't be put together"
$B mount -t tmpfs -o mode=0755,size=1m,nosuid,nodev tmpfs /root/run
$B cp -r /guest /root/run/guest
# What lies in a folder where something else is mounted later is found here.
$B mkdir /root/run/disks
$B mount --bind /root /root/run/disks || fail "the disks can't be shown twice"
for name in proc sys dev; do
	$B mount --move /$name /root/$name
done
set -- "$python"
if [ -n "$apart" ]; then
	$B mkdir /root/run/python
	$B mount --move "$apart" /root/run/python || fail "the disk of its Python can't be shown"
	python=/run/python$python
	set -- /run/python/loader --library-path /run/python/libraries "$python"
fi
[ -x "/root$python" ] || [ -L "/root$python" ] || fail "there is no $python on its disk"
exec $B switch_root /root "$@" -I -S -u /run/guest/flame/shims/guest/init.py 9>&-
