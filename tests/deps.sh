#!/bin/sh
# deps.sh GROUP... installs the Debian packages of tests/deps.txt that belong to
# one of the groups and are missing. It says what it installs and why. Without
# dpkg, apt-get or root it only names what is missing and exits 0: whoever needs
# a missing tool says so itself.
set -eu

list=$(dirname "$0")/deps.txt
[ $# -gt 0 ] || { echo "usage: deps.sh GROUP..." >&2; exit 2; }
if ! command -v dpkg-query >/dev/null 2>&1; then
	echo "deps: not a Debian system; what is needed is listed in $list"
	exit 0
fi

missing=
while read -r package groups purpose; do
	case $package in ''|'#'*) continue ;; esac
	wanted=
	for group in "$@"; do
		case ",$groups," in *",$group,"*) wanted=yes ;; esac
	done
	[ -n "$wanted" ] || continue
	status=$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true)
	[ "$status" = "install ok installed" ] && continue
	missing="$missing $package"
	echo "deps: missing $package: $purpose"
done <"$list"
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1 || [ "$(id -u)" != 0 ]; then
	echo "deps: install them as root with: apt-get install$missing"
	exit 0
fi

# A database package starts its server on installation. Debian's own switch
# keeps it from doing so; a policy that the administrator set stays.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	trap 'rm -f "$policy"' EXIT
	trap 'exit 130' INT TERM
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
fi
echo "deps: apt-get install$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# shellcheck disable=SC2086 # a list of words
apt-get install -q -y -o Dpkg::Use-Pty=0 --no-install-recommends $missing
