#!/bin/bash
# SPDX-License-Identifier: MIT
#
# Runs a program for x86-64 Linux on an emulated CPU with AVX-512, for machines that have none: qemu
# does not emulate it, Bochs does. Bochs is a whole PC, so a small Linux is booted there, with the
# program and its shared libraries in memory and no other files. From the top of the tree:
#
#   tools/emulate_avx512.sh PROGRAM [ARGUMENT...]
#   tools/emulate_avx512.sh --prepare       what is booted, into build/avx512; `make deps-avx512` calls it
#
# Output and exit status are the program's; of the environment it sees the BNORM_ variables alone.
# 10 s to boot, then some 50 million instructions a second. Exit status 124: it was stopped after
# EMULATE_SECONDS (3600); 125: it could not be run.
#
# Bochs 2.7 converts to F16 with another rounding than every CPU: programs that do that are compiled
# with tools/bochs_f16.h, as by `make emulate-SkylakeX`.
set -euo pipefail
export LC_ALL=C

cache=build/avx512
seconds=${EMULATE_SECONDS:-3600}

fail() {
    echo "emulate_avx512.sh: $*" >&2
    exit 125
}

# Unpacked, not installed: no system needs another kernel, or another busybox, for this.
prepare() (
    mkdir -p "$cache"
    cd "$cache"
    kernel=$(apt-cache depends --important linux-image-cloud-amd64 |
        sed -n 's/.*Depends: \(linux-image-[^ ]*\)$/\1/p')
    [ -n "$kernel" ] || fail 'there is no package linux-image-cloud-amd64: run it on Debian, after apt-get update.'
    rm -rf ./*
    # Without this root is warned that root downloads.
    apt-get -qq -o APT::Sandbox::User=root download "$kernel" busybox-static isolinux syslinux-common
    for package in *.deb; do
        dpkg-deb -x "$package" packages
    done
    mkdir cd
    mv packages/boot/vmlinuz-* cd/vmlinuz
    mv packages/usr/lib/ISOLINUX/isolinux.bin packages/usr/lib/syslinux/modules/bios/ldlinux.c32 cd
    mv packages/bin/busybox .
    rm -r packages ./*.deb
)

# What the kernel unpacks as its root: the program that is $1, stripped, with all that it links, and
# an init that runs it with all other arguments. The serial ports are the way out: the console's
# messages, stdout, stderr, and the exit status.
make_root() {
    local program=$1 library
    mkdir -p "$scratch"/root/{bin,dev,proc,tmp}
    strip -o "$scratch/root/program" "$program" || fail "$program is not a program that can be run."
    ldd "$program" 2>"$scratch/ldd" | grep -o '/[^ ]*' | while read -r library; do
        cp -L --parents "$library" "$scratch/root"
    done || : # a static program
    cp "$cache/busybox" "$scratch/root/bin"
    {
        echo '#!/bin/busybox sh'
        [ -z "${!BNORM_*}" ] || declare -px "${!BNORM_@}" | sed 's/^declare -x/export/'
        echo "set -- ${*@Q}"
        cat <<'END'
shift
/bin/busybox mount -t devtmpfs none /dev
/bin/busybox mount -t proc none /proc
for port in 1 2 3; do
    /bin/busybox stty raw -echo </dev/ttyS$port
done
if /bin/busybox grep -q avx512vl /proc/cpuinfo; then
    LD_BIND_NOW=1 /program "$@" </dev/null >/dev/ttyS1 2>/dev/ttyS2
    echo $? >/dev/ttyS3
fi
/bin/busybox poweroff -f
END
    } >"$scratch/root/init"
    chmod +x "$scratch/root/init"
    (cd "$scratch/root" && find . | bin/busybox cpio -o -H newc 2>"$scratch/cpio")
}

# clearcpuid: without XSAVEC and XSAVES (leaf 13, subleaf 1), whose sizes Linux finds wrong in Bochs
# and then goes on without AVX. LD_BIND_NOW above, as programs crash where they bind a function of a
# shared library at its first call, which saves all registers. The rest makes it boot faster.
make_disk() {
    cp "$cache"/cd/* "$scratch/cd"
    cat >"$scratch/cd/isolinux.cfg" <<'END'
default linux
label linux
kernel vmlinuz
append initrd=initrd rdinit=/init console=ttyS0 quiet clearcpuid=321,323 mitigations=off cryptomgr.notests initcall_blacklist=btf_vmlinux_init
END
    xorriso -as mkisofs -quiet -o "$scratch/disk" -b isolinux.bin -c catalog -no-emul-boot \
        -boot-load-size 4 -boot-info-table "$scratch/cd" 2>"$scratch/xorriso"
    cat >"$scratch/bochsrc" <<END
config_interface: textconfig
display_library: term
cpu: model=corei7_skylake_x, ips=50000000
memory: guest=512, host=512
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
ata0-master: type=cdrom, path=$scratch/disk, status=inserted
boot: cdrom
clock: sync=none
com1: enabled=1, mode=file, dev=$scratch/console
com2: enabled=1, mode=file, dev=$scratch/stdout
com3: enabled=1, mode=file, dev=$scratch/stderr
com4: enabled=1, mode=file, dev=$scratch/status
log: $scratch/log
panic: action=fatal
END
    # Debian's Bochs has a debugger, which waits for a command.
    echo continue >"$scratch/commands"
}

case ${1-} in
--prepare)
    prepare
    exit
    ;;
'' | -*)
    echo 'usage: tools/emulate_avx512.sh --prepare | PROGRAM [ARGUMENT...]' >&2
    exit 125
    ;;
esac
for tool in bochs xorriso strip "$cache/busybox"; do
    command -v "$tool" >/dev/null || fail "$tool is missing; \`make deps-avx512\` gets it."
done
scratch=$(mktemp -d)
bochs=
trap '[ -z "$bochs" ] || kill "$bochs" 2>/dev/null; rm -rf "$scratch"' EXIT
trap 'exit 125' HUP INT TERM

mkdir "$scratch/cd"
make_root "$@" >"$scratch/cd/initrd"
make_disk
mkfifo "$scratch/stdout" "$scratch/stderr"
cat "$scratch/stdout" &
cat "$scratch/stderr" >&2 &
# Open here until Bochs ends: it opens them with the first byte, which may never come.
exec 3>"$scratch/stdout" 4>"$scratch/stderr"
TERM=xterm timeout "$seconds" bochs -q -f "$scratch/bochsrc" -rc "$scratch/commands" \
    </dev/null >"$scratch/screen" 2>"$scratch/messages" 3>&- 4>&- &
bochs=$!
# Bochs draws the PC's screen on a terminal that it opens, and stops when nobody reads there.
terminal=
while [ -z "$terminal" ] && kill -0 "$bochs" 2>/dev/null; do
    sleep 0.2
    terminal=$(sed -n 's|.*connected to screen "\(/dev/pts/[0-9]*\)".*|\1|p' "$scratch/messages")
done
cat "$terminal" >/dev/null 2>&1 3>&- 4>&- &
ended=0
wait "$bochs" || ended=$?
bochs=
exec 3>&- 4>&-
wait
if [ -s "$scratch/status" ]; then
    exit "$(cat "$scratch/status")"
elif [ $ended = 124 ]; then
    echo "emulate_avx512.sh: stopped after $seconds s; EMULATE_SECONDS gives it longer." >&2
    exit 124
fi
tail -n 20 "$scratch/console" "$scratch/log" >&2 || :
fail 'the emulated PC ended before the program did; above is the end of what Linux and Bochs say.'
