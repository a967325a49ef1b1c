# What isolation at level gvisor needs on the machine that runs the tests: runsc, from the system's packages.
# Without the right to install it, or without apt-get, it says so and goes on: the tests that need it fail by name.
set -eu

command -v runsc >/dev/null && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "gVisor (runsc) is missing: install it, for example with: sudo apt-get install runsc" >&2
	exit 0
fi
echo "installing gVisor"
export DEBIAN_FRONTEND=noninteractive
install="apt-get install -qq -y --no-install-recommends runsc"
$install >/dev/null 2>&1 || { apt-get update -qq && $install >/dev/null; }
