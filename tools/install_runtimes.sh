# What isolation and containers need on the machine that runs the tests, from the system's packages: bubblewrap, gVisor,
# podman with newuidmap, and for virtual machines QEMU with busybox, mke2fs and a kernel. Without the right to install,
# or without apt-get, it says what is missing and goes on: the tests that need it fail by name.
set -eu

export DEBIAN_FRONTEND=noninteractive
microvm=/var/lib/flame/microvm

# apt ACTION...: apt-get, with fresh lists if it fails without.
apt() {
	apt-get -qq "$@" >/dev/null 2>&1 || { apt-get update -qq && apt-get -qq "$@" >/dev/null; }
}

# provide NAME CHECK PACKAGE...: install the packages unless the command CHECK succeeds.
provide() {
	name=$1 check=$2
	shift 2
	"$check" && return
	if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		echo "$name is missing: install it, for example with: sudo apt-get install $*" >&2
		return
	fi
	echo "installing $name"
	apt install -y --no-install-recommends "$@"
}

has_bwrap() { command -v bwrap >/dev/null; }
has_runsc() { command -v runsc >/dev/null; }
has_newuidmap() { command -v newuidmap >/dev/null; }
has_podman() { command -v podman >/dev/null && test -x /bin/busybox; }
has_qemu() {
	command -v qemu-system-x86_64 >/dev/null && command -v busybox >/dev/null &&
		PATH=$PATH:/usr/sbin:/sbin command -v mke2fs >/dev/null
}

# A kernel for virtual machines, unpacked where Flame looks for it; the machine's own stays as it is.
provide_kernel() {
	ls $microvm/boot/vmlinuz-* >/dev/null 2>&1 && return
	if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		echo "a kernel in $microvm is missing: docs/microvm.md says how to install one" >&2
		return
	fi
	echo "installing a kernel for virtual machines"
	folder=$(mktemp -d)
	trap 'rm -rf "$folder"' EXIT
	chmod 755 "$folder"
	cd "$folder"
	package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
	apt download "$package"
	mkdir unpacked
	dpkg -x ./*.deb unpacked
	mkdir -p $microvm/lib/modules $microvm/boot
	# The image comes last: it is what is looked for.
	cp -r unpacked/lib/modules/. $microvm/lib/modules/
	cp unpacked/boot/vmlinuz-* $microvm/boot/
}

provide "bubblewrap (bwrap)" has_bwrap bubblewrap
provide "gVisor (runsc)" has_runsc runsc
provide "newuidmap, for podman of other users than root" has_newuidmap uidmap
provide "podman or busybox" has_podman podman runc busybox-static
if [ "$(uname -m)" = x86_64 ]; then
	provide "QEMU, busybox or mke2fs" has_qemu qemu-system-x86 busybox-static e2fsprogs
	provide_kernel
else
	echo "level microvm is tested on x86_64 only" >&2
fi
