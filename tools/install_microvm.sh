# What isolation at level microvm needs on the machine that runs the tests: QEMU, busybox, mke2fs, and a kernel, from the
# system's packages. The kernel is only unpacked, where Flame looks for it; the machine's own stays as it is. Without the
# right to install, or without apt-get, it says so and goes on: the tests that need it fail by name.
set -eu

kernel=/var/lib/flame/microvm
complete() {
	command -v qemu-system-x86_64 >/dev/null && command -v busybox >/dev/null &&
		PATH=$PATH:/usr/sbin:/sbin command -v mke2fs >/dev/null && ls $kernel/boot/vmlinuz-* >/dev/null 2>&1
}
complete && exit 0
if [ "$(uname -m)" != x86_64 ]; then
	echo "level microvm is tested on x86_64 only" >&2
	exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "QEMU, busybox, mke2fs or a kernel in $kernel is missing: docs/microvm.md says how to install them" >&2
	exit 0
fi
echo "installing QEMU, busybox and a kernel for virtual machines"
export DEBIAN_FRONTEND=noninteractive
install="apt-get install -qq -y --no-install-recommends qemu-system-x86 busybox-static e2fsprogs"
$install >/dev/null 2>&1 || { apt-get update -qq && $install >/dev/null; }
complete && exit 0
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
cd "$folder"
package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
apt-get download -qq "$package" >/dev/null 2>&1 || { apt-get update -qq && apt-get download -qq "$package"; }
mkdir unpacked
dpkg -x ./*.deb unpacked
mkdir -p $kernel/lib/modules
# The image comes last: it is what is looked for.
cp -r unpacked/lib/modules/. $kernel/lib/modules/
mkdir -p $kernel/boot
cp unpacked/boot/vmlinuz-* $kernel/boot/
