//! Ways out as scripts: each exits with 0 when it got out. They are written as somebody would write them who
//! has a shell and Python, and does not know how a box is built.

use kage_core::contain::Tier;

/// Where an attack has to succeed outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outside {
    Everybody,
    /// For whoever has `CAP_SYS_ADMIN`. Root of a container often has not.
    Admin,
    /// The machine of the test may refuse it as well, or the container that the test runs in.
    Unknown,
}

pub(crate) struct Attack {
    pub(crate) name: &'static str,
    /// The lowest tier that holds it.
    pub(crate) tier: Tier,
    pub(crate) outside: Outside,
    pub(crate) script: &'static str,
}

const fn attack(name: &'static str, tier: Tier, outside: Outside, script: &'static str) -> Attack {
    Attack {
        name,
        tier,
        outside,
        script,
    }
}

/// What the scripts in Python begin with: a system call by its numbers on both kinds of machines.
pub(crate) const PYTHON: &str = r"
import ctypes, os, platform, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
victim = int(os.environ['VICTIM'])
def call(x86, arm, *args):
    args = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    got = libc.syscall(ctypes.c_long(x86 if platform.machine() == 'x86_64' else arm), *args)
    if got < 0:
        sys.exit('errno %d' % ctypes.get_errno())
    return got
";

use Outside::{Admin, Everybody, Unknown};
use Tier::{T1, T2};

/// Scripts of a shell.
pub(crate) const SHELL: &[Attack] = &[
    attack("list what services keep", T2, Everybody, "ls /var | grep -q '^log$'"),
    attack("cat the token", T1, Everybody, r#"cat "$TOKEN""#),
    attack("cat the outbox", T1, Everybody, r#"cat "$STATE/outbox.db""#),
    attack("cat the key", T1, Everybody, r#"cat "$STATE/tls/agent.key""#),
    attack("cat handed values", T1, Everybody, r#"cat "$STATE/handed/1""#),
    attack("cat another worktree", T1, Everybody, r#"cat ../other/file"#),
    attack(
        "cat another scratch folder",
        T1,
        Everybody,
        r#"cat "$HOME/../../other/home/file""#,
    ),
    attack(
        "cat another repository",
        T1,
        Everybody,
        r#"cat "$STATE/mirrors/p/other.git/objects/ab/cd""#,
    ),
    attack(
        "cat the mirror's settings",
        T1,
        Everybody,
        r#"cat "$STATE/mirrors/p/r.git/config""#,
    ),
    attack("cat another context", T1, Everybody, r#"cat "$STATE/contexts/other""#),
    attack(
        "write the mirror's object",
        T1,
        Everybody,
        r#"echo x >> "$STATE/mirrors/p/r.git/objects/ab/cd""#,
    ),
    attack(
        "make an object in the mirror",
        T1,
        Everybody,
        r#"echo x > "$STATE/mirrors/p/r.git/objects/ab/new" && rm "$STATE/mirrors/p/r.git/objects/ab/new""#,
    ),
    attack(
        "make a hook in the mirror",
        T1,
        Everybody,
        r#"mkdir "$STATE/mirrors/p/r.git/hooks" && rmdir "$STATE/mirrors/p/r.git/hooks""#,
    ),
    attack("write another worktree", T1, Everybody, r#"echo x >> ../other/file"#),
    attack(
        "remove another worktree's file",
        T1,
        Everybody,
        r#"rm ../other/file && echo x > ../other/file"#,
    ),
    attack("write the outbox", T1, Everybody, r#"echo x >> "$STATE/outbox.db""#),
    attack(
        "move a folder of the agent",
        T1,
        Everybody,
        r#"mv "$STATE/tls" stolen && mv stolen "$STATE/tls""#,
    ),
    attack(
        "link into the worktree",
        T1,
        Everybody,
        r#"ln "$STATE/tls/agent.key" key && cat key && rm key"#,
    ),
    attack(
        "follow a link",
        T1,
        Everybody,
        r#"ln -sfn "$STATE" soft && cat soft/tls/agent.key; got=$?; rm -f soft; exit $got"#,
    ),
    attack(
        "walk by /proc/self/root",
        T1,
        Everybody,
        r#"cat "/proc/self/root$STATE/tls/agent.key""#,
    ),
    attack(
        "walk by the agent's root",
        T1,
        Everybody,
        r#"cat "/proc/$VICTIM/root$STATE/tls/agent.key""#,
    ),
    attack(
        "git reads another repository",
        T1,
        Everybody,
        r#"GIT_CONFIG_NOSYSTEM=1 git hash-object --no-filters "$STATE/mirrors/p/other.git/objects/ab/cd""#,
    ),
    attack(
        "the agent's environment",
        T1,
        Everybody,
        r#"tr '\0' '\n' < /proc/$VICTIM/environ | grep -q ."#,
    ),
    attack("the agent's files", T1, Everybody, r#"readlink /proc/$VICTIM/fd/0"#),
    attack("the agent's folder", T1, Everybody, r#"readlink /proc/$VICTIM/cwd"#),
    attack(
        "the agent's maps",
        T1,
        Everybody,
        r#"head -c1 /proc/$VICTIM/maps | grep -q ."#,
    ),
    attack("signal the agent", T1, Everybody, r#"kill -0 $VICTIM"#),
    attack("stop the warden", T1, Everybody, r#"[ $PPID -gt 1 ] && kill -0 $PPID"#),
    attack(
        "write a dotfile of the person",
        T1,
        Everybody,
        r#"echo x > "$PERSON/.profile" && rm "$PERSON/.profile""#,
    ),
    attack(
        "write an authorized key",
        T1,
        Everybody,
        r#"echo x >> "$PERSON/.ssh/authorized_keys" && rm "$PERSON/.ssh/authorized_keys""#,
    ),
    attack(
        "a file in /etc",
        T1,
        Admin,
        r#"touch /etc/.kage-test && rm /etc/.kage-test"#,
    ),
    attack(
        "a program in PATH",
        T1,
        Admin,
        r#"touch /usr/local/bin/.kage-test && rm /usr/local/bin/.kage-test"#,
    ),
    attack(
        "a cron job",
        T1,
        Unknown,
        r#"touch /var/spool/cron/.kage-test && rm /var/spool/cron/.kage-test"#,
    ),
    attack(
        "a raw disk",
        T1,
        Unknown,
        r#"for disk in /dev/vda /dev/sda /dev/nvme0n1 /dev/mem; do head -c1 $disk >/dev/null 2>&1 && exit 0; done; exit 1"#,
    ),
    attack("a device of one's own", T1, Admin, r#"mknod disk b 1 0 && rm disk"#),
    attack(
        "the kernel's switches",
        T1,
        Admin,
        r#": >> /proc/sys/kernel/core_pattern"#,
    ),
    attack("the kernel's log", T1, Unknown, r#"head -c1 /dev/kmsg >/dev/null"#),
    attack("mount", T1, Admin, r#"mkdir -p m && mount -t tmpfs none m && umount m"#),
    attack(
        "bind a folder over another",
        T1,
        Admin,
        r#"mkdir -p m && mount --bind "$STATE" m && umount m"#,
    ),
    attack(
        "enter the agent's namespaces",
        T1,
        Admin,
        r#"nsenter -t $VICTIM -m true"#,
    ),
    attack("a namespace of mounts", T1, Admin, r#"unshare -m true"#),
    attack(
        "privileges by a program",
        T1,
        Unknown,
        r#"grep -q 'NoNewPrivs:.0' /proc/self/status"#,
    ),
    attack("a user namespace", T2, Unknown, r#"unshare -U true"#),
    attack("names in another worktree", T2, Everybody, r#"ls ../other/file"#),
    attack("the person's keys", T2, Everybody, r#"cat "$PERSON/.ssh/id_rsa""#),
    attack("the person's cloud", T2, Everybody, r#"cat "$PERSON/.aws/credentials""#),
    attack(
        "modes of the agent's files",
        T2,
        Everybody,
        r#"chmod 600 "$STATE/outbox.db""#,
    ),
    attack("who runs on the machine", T2, Everybody, r#"cat /proc/$VICTIM/cmdline"#),
    attack(
        "the agent's priority",
        T2,
        Everybody,
        r#"renice -n "$(awk '{print $19}' /proc/$VICTIM/stat)" -p $VICTIM"#,
    ),
    attack("passwords", T2, Admin, r#"grep -q . /etc/shadow"#),
    attack(
        "a control group",
        T1,
        Unknown,
        r#"mkdir /sys/fs/cgroup/kage-test && rmdir /sys/fs/cgroup/kage-test"#,
    ),
];

/// Scripts of Python.
pub(crate) const CALLS: &[Attack] = &[
    attack(
        "the abstract socket",
        T1,
        Everybody,
        r"socket.socket(socket.AF_UNIX).connect('\0' + os.environ['ABSTRACT'])",
    ),
    attack(
        "the socket with a path",
        T2,
        Everybody,
        r"socket.socket(socket.AF_UNIX).connect(os.environ['SOCKET'])",
    ),
    attack("ptrace", T1, Unknown, r"call(101, 117, 0x4206, victim, 0, 0)"),
    attack(
        "process_vm_readv",
        T1,
        Unknown,
        r"
buffer = ctypes.create_string_buffer(8)
local = struct.pack('QQ', ctypes.addressof(buffer), 8)
maps = open('/proc/%d/maps' % victim).readline()
remote = struct.pack('QQ', int(maps.split('-')[0], 16), 8)
call(310, 270, victim, local, 1, remote, 1, 0)",
    ),
    attack(
        "the agent's memory",
        T1,
        Unknown,
        r"open('/proc/%d/mem' % victim, 'rb')",
    ),
    attack(
        "pidfd_getfd",
        T1,
        Unknown,
        r"call(438, 438, os.pidfd_open(victim), 0, 0)",
    ),
    attack("kcmp", T1, Unknown, r"call(312, 272, victim, os.getpid(), 2, 0, 0)"),
    attack("signal everybody", T2, Everybody, r"os.kill(-1, 0)"),
    attack(
        "prlimit of the agent",
        T2,
        Everybody,
        r"call(302, 261, victim, 7, 0, ctypes.create_string_buffer(16))",
    ),
    attack(
        "a raw socket",
        T1,
        Admin,
        r"socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    ),
    attack("chroot", T1, Admin, r"os.chroot('/')"),
    attack(
        "the machine's name",
        T1,
        Admin,
        r"socket.sethostname(socket.gethostname())",
    ),
    attack(
        "the clock",
        T1,
        Admin,
        r"
import time
time.clock_settime(time.CLOCK_REALTIME, time.time())",
    ),
    attack(
        "a memory dump",
        T1,
        Admin,
        r"
import resource
resource.setrlimit(resource.RLIMIT_CORE, (1, 1))",
    ),
    attack(
        "open_by_handle_at",
        T1,
        Unknown,
        r"
handle = ctypes.create_string_buffer(struct.pack('Ii', 128, 0) + bytes(128))
at = ctypes.c_int()
call(303, 264, -100, os.environ['STATE'].encode(), handle, ctypes.byref(at), 0)
call(304, 265, os.open('/', os.O_RDONLY), handle, 0)",
    ),
    attack(
        "a terminal's input",
        T1,
        Unknown,
        r"
import fcntl
fcntl.ioctl(os.open('/proc/%d/fd/0' % victim, os.O_RDWR), 0x5412, b'x')",
    ),
    attack(
        "bpf",
        T2,
        Unknown,
        r"
attr = ctypes.create_string_buffer(struct.pack('IIII', 1, 4, 4, 1) + bytes(104))
call(321, 280, 0, attr, 120)",
    ),
    attack("keyctl", T2, Unknown, r"call(250, 219, 0, -3, 1)"),
    attack(
        "add_key",
        T2,
        Unknown,
        r"call(248, 217, b'user', b'kage-test', b'x', 1, -3)",
    ),
    attack(
        "io_uring",
        T2,
        Unknown,
        r"call(425, 425, 4, ctypes.create_string_buffer(256))",
    ),
    attack(
        "clone into a namespace",
        T2,
        Unknown,
        r"
child = call(56, 220, 0x10000000 | 17, 0, 0, 0, 0)
if child == 0:
    os._exit(0)
os.waitpid(child, 0)",
    ),
    attack(
        "vsock",
        T2,
        Unknown,
        r"socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)",
    ),
    attack("userfaultfd", T2, Unknown, r"call(323, 282, 1)"),
    attack(
        "perf_event_open",
        T2,
        Unknown,
        r"
attr = ctypes.create_string_buffer(struct.pack('IIQ', 1, 128, 1) + bytes(112))
call(298, 241, attr, 0, -1, -1, 0)",
    ),
    attack("a mount by the new calls", T1, Admin, r"call(430, 430, b'tmpfs', 0)"),
    attack(
        "what shared memory there is",
        T2,
        Everybody,
        r"
shared = [name for name in os.listdir('/dev/shm') if name.startswith('kage-test-')]
assert shared",
    ),
];
