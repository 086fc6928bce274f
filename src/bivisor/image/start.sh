# The child of init (initramfs.py) in the default guest: the command of --exec, or else a shell on the console.
# It is on the measured path to user space, where a fork and exec costs 8 ms: builtins of busybox's ash wherever one does.

size='' term=linux exit_port='' stdio='' dhcp='' shares=''
read -r words </proc/cmdline
for word in $words; do
	case $word in
	bivisor.size=*x*) size=${word#*=} ;;
	bivisor.term=*) term=${word#*=} ;;
	bivisor.exit=*) exit_port=$((${word#*=})) ;;
	bivisor.stdio=*) stdio=${word#*=} ;;
	bivisor.dhcp=*) dhcp="$dhcp ${word#*=}" ;;
	bivisor.share=*) shares="$shares ${word#*=}" ;;
	esac
done
export TERM="$term"
cd /root || cd /
if read -r hypervisor 2>/dev/null </sys/hypervisor/type && [ "$hypervisor" = xen ]; then
	load-modules /lib/modules/xen/*.ko
fi
if [ -n "$shares" ]; then
	[ -d /lib/modules/share ] && load-modules /lib/modules/share/*.ko
	for share in $shares; do
		tag=${share%,ro} access=rw place=/mnt
		[ "$tag" = "$share" ] || access=ro
		if [ "$tag" != share ]; then
			place=/share/$tag
			mkdir -p "$place"
		fi
		mount -t virtiofs -o "$access" "$tag" "$place"
	done
fi
for interface in $dhcp; do udhcpc -i "$interface" -n -q -t 5 -T 1 >/dev/null 2>&1; done

# Sets in, out, err to the device nodes of the virtio-console ports of these names; fails while one is missing.
find_ports() {
	in='' out='' err=''
	for port in /sys/class/virtio-ports/*; do
		read -r name 2>/dev/null <"$port/name" || continue
		case $name in
		bivisor.stdin) in=/dev/${port##*/} ;;
		bivisor.stdout) out=/dev/${port##*/} ;;
		bivisor.stderr) err=/dev/${port##*/} ;;
		esac
	done
	[ -n "$in" ] && [ -n "$out" ] && [ -n "$err" ]
}

if [ -e /bivisor/exec ]; then
	# A port gets its name some time after its driver is there.
	tries=0
	until find_ports || [ "$stdio" != virtio ] || [ $((tries += 1)) -gt 500 ]; do sleep 0.01; done
	(. /bivisor/exec) <"${in:-/dev/console}" >"${out:-/dev/console}" 2>"${err:-${out:-/dev/console}}"
	status=$?
	[ -n "$exit_port" ] && exec /bin/debug-exit $status "$exit_port"
	exit $status # and init powers off
fi

# Init made this process a session leader; the first terminal that it opens becomes its controlling one.
read -r consoles </sys/class/tty/console/active
exec <>"/dev/${consoles##* }" >&0 2>&0
[ -n "$size" ] && stty rows "${size%x*}" cols "${size#*x}"
read -r release </proc/sys/kernel/osrelease
echo "Linux $release. Leave with exit or Ctrl-D."
export PS1='\w \$ '
exec sh -i
