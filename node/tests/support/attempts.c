// What a hostile program inside of a container tries. Called with names of attempts, it makes each one in a process of its
// own and prints one line: the name, and `done`, the error's name, `signal N`, or `absent` where this processor has no
// such thing. `done` means that it worked.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/if_link.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// asm-generic/unistd.h: newer than the headers of Debian 12, or without a name there; the same on both processors.
#define NR_QUOTACTL_FD 443
#define NR_MEMFD_SECRET 447
#define NR_FCHMODAT2 452
#define NR_OPEN_TREE_ATTR 467

#define ABSENT (-100000)

// -1 and errno, as in all that follows; several steps stop at the first that fails.
static long opens(const char *path, int flags) {
    int fd = open(path, flags | O_CLOEXEC | O_NONBLOCK);
    return fd < 0 ? -1 : close(fd);
}

static long writes(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    return write(fd, text, strlen(text)) < 0 ? -1 : close(fd);
}

// Something is in the file.
static long reads(const char *path) {
    char byte;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return -1;
    ssize_t count = read(fd, &byte, 1);
    if (count == 0) errno = ENODATA;
    return count == 1 ? 0 : -1;
}

static long joins(const char *path, int kind) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? -1 : setns(fd, kind);
}

// A process in new namespaces; the child ends at once.
static long clones(unsigned long flags) {
    long pid = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) _exit(0);
    return pid;
}

// The kernel's answer to one netlink message.
static long asks_netlink(int protocol, struct nlmsghdr *message) {
    char answer[4096];
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);
    if (fd < 0 || send(fd, message, message->nlmsg_len, 0) < 0) return -1;
    ssize_t length = recv(fd, answer, sizeof answer, 0);
    if (length < 0) return -1;
    struct nlmsghdr *first = (struct nlmsghdr *)answer;
    if (first->nlmsg_type != NLMSG_ERROR) return 0;
    errno = -((struct nlmsgerr *)NLMSG_DATA(first))->error;
    return errno == 0 ? 0 : -1;
}

// Takes the loopback interface down.
static long changes_link(void) {
    struct { struct nlmsghdr head; struct ifinfomsg link; } message = {
        { sizeof message, RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, 1, 0 },
        { .ifi_index = 1, .ifi_flags = IFF_UP, .ifi_change = IFF_UP },
    };
    return asks_netlink(NETLINK_ROUTE, &message.head);
}

// Lists the tables of the firewall, which needs the same right as changing them.
static long reads_firewall(void) {
    struct { struct nlmsghdr head; struct nfgenmsg family; } message = {
        { sizeof message, NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE, NLM_F_REQUEST | NLM_F_ACK | NLM_F_DUMP, 1, 0 },
        { .nfgen_family = AF_UNSPEC, .version = NFNETLINK_V0 },
    };
    return asks_netlink(NETLINK_NETFILTER, &message.head);
}

static long raises(int resource, rlim_t by) {
    struct rlimit limit;
    if (getrlimit(resource, &limit) < 0) return -1;
    if (limit.rlim_max == RLIM_INFINITY) return errno = ERANGE, -1;
    limit.rlim_max += by;
    return setrlimit(resource, &limit);
}

static long real_time(void) {
    struct sched_param parameter = { .sched_priority = 1 };
    return sched_setscheduler(0, SCHED_FIFO, &parameter);
}

static long sets_clock(void) {
    struct timex change = { .modes = ADJ_OFFSET, .offset = 1 };
    return adjtimex(&change) < 0 ? -1 : 0;
}

// A process that is neither the first one nor of this program's making, or whose root directory is not ours.
static long sees_others(void) {
    DIR *proc = opendir("/proc");
    for (struct dirent *entry; proc && (entry = readdir(proc));) {
        char path[300];
        struct stat root, own;
        long pid = atol(entry->d_name);
        if (pid <= 0) continue;
        snprintf(path, sizeof path, "/proc/%ld/root/", pid);
        // One that has ended has no root any more.
        if (stat(path, &root) < 0 && errno == ENOENT) continue;
        if (stat("/", &own) < 0) return -1;
        if (root.st_dev != own.st_dev || root.st_ino != own.st_ino) return 0;
        if (pid != 1 && pid != getpid() && pid != getppid()) return 0;
    }
    errno = ESRCH;
    return -1;
}

static long sends_signal_outside(void) {
    // 0 asks only whether it may: the parent of the first process is nobody here.
    return kill(4194303, 0);
}

// Executes a program that is set-user-id root or has file capabilities; it says with its exit code what it got.
static long gains(const char *path) {
    int status = 0;
    pid_t pid = fork();
    if (pid == 0) {
        execl(path, path, "--privileged", NULL);
        // The kernel refuses a program whose capabilities it may not give at all.
        _exit(errno == EPERM ? 1 : 99);
    }
    if (pid < 0 || waitpid(pid, &status, 0) < 0) return -1;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return 0;
    errno = WIFEXITED(status) && WEXITSTATUS(status) == 1 ? EACCES : ENOEXEC;
    return -1;
}

static int has_privileges(void) {
    struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
    struct __user_cap_data_struct sets[2] = { { 0 } };
    if (syscall(SYS_capget, &head, sets) < 0) return 0;
    return geteuid() == 0 || sets[0].permitted || sets[1].permitted;
}

static long chroot_escape(void) {
    int root = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (mkdir("/tmp/cage", 0700) < 0 && errno != EEXIST) return -1;
    if (chroot("/tmp/cage") < 0 || fchdir(root) < 0) return -1;
    return chdir("../../../../..");
}

static long handle_of_dev(void) {
    char space[sizeof(struct file_handle) + 128];
    struct file_handle *handle = (struct file_handle *)space;
    int mount;
    handle->handle_bytes = 128;
    return name_to_handle_at(AT_FDCWD, "/dev", handle, &mount, 0);
}

static long opens_handle(void) {
    // The root of most file systems: inode 2 (known as "shocker").
    struct { struct file_handle head; unsigned inode[2]; } handle = { { 8, 1 }, { 2, 0 } };
    int mount = open("/etc/hosts", O_RDONLY | O_CLOEXEC);
    return open_by_handle_at(mount, &handle.head, O_RDONLY);
}

static long old_call_32(void) {
#ifdef __x86_64__
    long result;
    // getpid of i386 through the old gate.
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(20) : "memory", "r8", "r9", "r10", "r11");
    return result;
#else
    return ABSENT;
#endif
}

#ifdef __x86_64__
#define ONLY_X86(call) (call)
#else
#define ONLY_X86(call) ABSENT
#define SYS_iopl 0
#define SYS_ioperm 0
#define SYS_modify_ldt 0
#define SYS_uselib 0
#define SYS_ustat 0
#define SYS_sysfs 0
#endif

struct attempt { const char *name; long (*make)(void); };
#define TRY(name, call) static long name(void) { return call; }
#include "attempts.h"
#undef TRY
#define TRY(name, call) { #name, name },
static const struct attempt attempts[] = {
#include "attempts.h"
};

static long made(const char *name) {
    for (size_t i = 0; i < sizeof attempts / sizeof *attempts; i++)
        if (strcmp(attempts[i].name, name) == 0) return errno = 0, attempts[i].make();
    return errno = ENOSYS, -2;
}

static void make(const char *name) {
    int status, outcome[2], result = 0;
    if (pipe2(outcome, O_CLOEXEC) < 0) exit(98);
    pid_t pid = fork();
    if (pid == 0) {
        long value = made(name);
        result = value == -1 ? errno : value == ABSENT || value == -2 ? (int)value : 0;
        if (write(outcome[1], &result, sizeof result) < 0) _exit(1);
        _exit(0);
    }
    if (pid < 0 || waitpid(pid, &status, 0) < 0) exit(97);
    close(outcome[1]);
    if (WIFSIGNALED(status)) printf("%s signal %d\n", name, WTERMSIG(status));
    else if (read(outcome[0], &result, sizeof result) != sizeof result) printf("%s gone\n", name);
    else if (result == ABSENT) printf("%s absent\n", name);
    else if (result == -2) printf("%s unknown\n", name);
    else printf("%s %s\n", name, result == 0 ? "done" : strerrorname_np(result));
    close(outcome[0]);
    fflush(stdout);
}

// Whether somebody listens to what is written; /proc lets root open any of its files.
static int takes(const char *path) {
    int fd = open(path, O_WRONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return 0;
    int refused = write(fd, "", 0) < 0 && errno == EIO;
    close(fd);
    return !refused;
}

// Files outside of the directories of processes that can be written.
static void walk(const char *path, dev_t device, int depth) {
    DIR *directory = opendir(path);
    for (struct dirent *entry; directory && (entry = readdir(directory));) {
        char name[1024];
        struct stat stat;
        if (entry->d_name[0] == '.' || (depth == 0 && atol(entry->d_name) > 0)) continue;
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        if (lstat(name, &stat) < 0 || S_ISLNK(stat.st_mode)) continue;
        if (S_ISDIR(stat.st_mode)) walk(name, device, depth + 1);
        else if (S_ISREG(stat.st_mode) && takes(name)) printf("%s\n", name);
    }
    if (directory) closedir(directory);
}

int main(int count, char **words) {
    if (count == 2 && strcmp(words[1], "--privileged") == 0) return has_privileges() ? 0 : 1;
    if (count == 3 && strcmp(words[1], "--writable") == 0) {
        walk(words[2], 0, 0);
        return 0;
    }
    if (count == 2 && strcmp(words[1], "--open") == 0) {
        for (int fd = 3; fd < 65536; fd++)
            if (fcntl(fd, F_GETFD) >= 0) printf("%d\n", fd);
        return 0;
    }
    for (int i = 1; i < count; i++) make(words[i]);
    return 0;
}
