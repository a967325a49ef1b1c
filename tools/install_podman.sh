# What the container shim needs on the machine that runs the tests: podman, and busybox to make a small image of.
# Without the right to install them, or without apt-get, it says so and goes on: the tests that need them fail by name.
set -eu

command -v podman >/dev/null && test -x /bin/busybox && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "podman or busybox is missing: install them, for example with: sudo apt-get install podman busybox-static" >&2
	exit 0
fi
echo "installing podman"
export DEBIAN_FRONTEND=noninteractive
install="apt-get install -qq -y --no-install-recommends podman runc busybox-static"
$install >/dev/null 2>&1 || { apt-get update -qq && $install >/dev/null; }
