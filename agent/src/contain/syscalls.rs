//! The system calls that programs in T2 do not have, as filters for the kernel. A list of what is refused
//! and not of what is allowed: a toolchain may use any other call, and mounts, namespaces and Landlock hold
//! what those do.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

/// Calls that are refused whatever their arguments are.
const REFUSED: &[i64] = &[
    libc::SYS_bpf,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_open_by_handle_at,
    libc::SYS_quotactl,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_reboot,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_vhangup,
    libc::SYS_lookup_dcookie,
    libc::SYS_fanotify_init,
];

/// Calls of the older machines only.
#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[i64] = &[libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[i64] = &[];

/// Flags of `clone` that make namespaces.
const NAMESPACES: &[i32] = &[
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// Kinds of sockets that a program may have: of the machine itself, of the internet, and for asking the
/// kernel about interfaces.
const SOCKETS: &[i32] = &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// Commands to a terminal that type into it.
const TYPING: &[u64] = &[0x5412, 0x541C];

/// The architecture of this program; `None`: the filters are not known for it.
fn here() -> Option<TargetArch> {
    if cfg!(target_arch = "x86_64") {
        Some(TargetArch::x86_64)
    } else if cfg!(target_arch = "aarch64") {
        Some(TargetArch::aarch64)
    } else {
        None
    }
}

/// The filters of T2. All of them count.
///
/// # Errors
/// When there are none for this architecture.
pub(super) fn filters() -> Result<Vec<BpfProgram>, String> {
    let arch = here().ok_or("the filters of system calls are not known for this processor")?;
    let refuse = SeccompAction::Errno(code(libc::EPERM));
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = REFUSED
        .iter()
        .chain(REFUSED_HERE)
        .map(|call| (*call, Vec::new()))
        .collect();
    let namespaces = NAMESPACES.iter().map(|flag| {
        let flag = u64::from(u32::from_ne_bytes(flag.to_ne_bytes()));
        rule(&[(0, SeccompCmpOp::MaskedEq(flag), flag)])
    });
    rules.insert(libc::SYS_clone, namespaces.collect::<Result<_, _>>()?);
    let kinds: Vec<_> = SOCKETS
        .iter()
        .map(|kind| (0, SeccompCmpOp::Ne, u64::from(code(*kind))))
        .collect();
    rules.insert(libc::SYS_socket, vec![rule(&kinds)?]);
    let typing = TYPING.iter().map(|command| rule(&[(1, SeccompCmpOp::Eq, *command)]));
    rules.insert(libc::SYS_ioctl, typing.collect::<Result<_, _>>()?);
    // Its flags are in memory, where no filter looks. Libraries use `clone` when it is not there.
    let absent = [(libc::SYS_clone3, Vec::new())].into();
    let mut filters = vec![
        filter(rules, refuse, arch)?,
        filter(absent, SeccompAction::Errno(code(libc::ENOSYS)), arch)?,
    ];
    if arch == TargetArch::x86_64 {
        filters.push(no_second_numbers());
    }
    Ok(filters)
}

/// Where the second numbers begin.
const SECOND_NUMBERS: u32 = 0x4000_0000;

/// On x86_64 most calls have a second number, with which the other filters would let them pass: that of the
/// x32 interface. Few kernels have it, and no toolchain needs it. Other filters end what is of another
/// architecture.
fn no_second_numbers() -> BpfProgram {
    let step = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    vec![
        // Load the number.
        step(0x20, 0, 0, 0),
        // One step on if it is a second one, else over that.
        step(0x35, 0, 1, SECOND_NUMBERS),
        step(0x06, 0, 0, 0x0005_0000 | code(libc::ENOSYS)),
        step(0x06, 0, 0, 0x7fff_0000),
    ]
}

/// A number that is never negative as the kernel takes it.
const fn code(number: i32) -> u32 {
    number.unsigned_abs()
}

/// A rule for arguments that are all so.
fn rule(conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, String> {
    let conditions = conditions
        .iter()
        .map(|(argument, is, value)| SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, is.clone(), *value));
    let conditions = conditions
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    SeccompRule::new(conditions).map_err(|error| error.to_string())
}

fn filter(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    refuse: SeccompAction,
    arch: TargetArch,
) -> Result<BpfProgram, String> {
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch);
    let program = filter.and_then(BpfProgram::try_from);
    program.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_fit_into_the_kernel() {
        let filters = filters().unwrap();
        assert_eq!(filters.len(), if cfg!(target_arch = "x86_64") { 3 } else { 2 });
        // What the kernel takes at most.
        assert!(filters.iter().all(|filter| !filter.is_empty() && filter.len() < 4096));
    }

    #[test]
    fn no_call_is_refused_twice() {
        let mut all: Vec<_> = REFUSED.iter().chain(REFUSED_HERE).collect();
        all.sort_unstable();
        let before = all.len();
        all.dedup();
        assert_eq!(all.len(), before);
        for also in [libc::SYS_clone, libc::SYS_socket, libc::SYS_ioctl, libc::SYS_clone3] {
            assert!(!all.contains(&&also), "{also}");
        }
    }
}
