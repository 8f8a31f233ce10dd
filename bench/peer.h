/* What the ends of a measured connection have in common, whatever they speak: the window in which they observe,
 * the sockets, and the latencies.
 */

#ifndef GSPLICE_BENCH_PEER_H
#define GSPLICE_BENCH_PEER_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    MOST_PIDS = 256,
    EVENTS_AT_ONCE = 256,
    BACKLOG = 4096,
    LINE_LENGTH = 4096,
    DISCARD_AT_ONCE = 1 << 30, /* the kernel drops what is queued: no buffer has this size */
};
static const uint64_t SECOND = 1000000000;
static const uint64_t LONGEST_DRAIN = 5000000000; /* for the last replies, after the window */

static inline void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("peer: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    _exit(1);
}

static inline void die_of_errno(const char *what)
{
    die("%s: %s", what, strerror(errno));
}

/* ---- the window ---------------------------------------------------------------------------------------- */

static inline uint64_t nanoseconds(clockid_t clock)
{
    struct timespec time;
    if (clock_gettime(clock, &time) != 0)
        die_of_errno("clock_gettime");
    return (uint64_t)time.tv_sec * SECOND + (uint64_t)time.tv_nsec;
}

static inline uint64_t now(void)
{
    return nanoseconds(CLOCK_MONOTONIC);
}

struct window {
    uint64_t begin, end; /* planned */
    int pid_count;
    clockid_t clocks[MOST_PIDS]; /* a process's clock includes its threads, the ended ones too */
    uint64_t cpu[MOST_PIDS];
    uint64_t opened, closed; /* as it was */
};

static inline void window_open(struct window *window)
{
    for (int i = 0; i < window->pid_count; i++)
        window->cpu[i] = nanoseconds(window->clocks[i]);
    window->opened = now();
}

static inline void window_close(struct window *window)
{
    window->closed = now();
    for (int i = 0; i < window->pid_count; i++)
        window->cpu[i] = nanoseconds(window->clocks[i]) - window->cpu[i];
}

/* The fields that every answer begins with; the caller adds its own and closes the object. */
static inline void window_print(const struct window *window)
{
    printf("{\"seconds\": %.9f, \"cpu\": [", (double)(window->closed - window->opened) / 1e9);
    for (int i = 0; i < window->pid_count; i++)
        printf("%s%.9f", i ? ", " : "", (double)window->cpu[i] / 1e9);
    printf("]");
}

static inline struct window window_from_command(char *line)
{
    struct window window = {0};
    char *rest = line, *word = strsep(&rest, " \n");
    if (strcmp(word, "measure") != 0)
        die("not a command: %s", word);
    double warmup = strtod(rest, &rest);
    double seconds = strtod(rest, &rest);
    window.begin = now() + (uint64_t)(warmup * 1e9);
    window.end = window.begin + (uint64_t)(seconds * 1e9);
    for (;;) {
        char *start = rest;
        long pid = strtol(start, &rest, 10);
        if (rest == start)
            return window;
        if (window.pid_count == MOST_PIDS)
            die("more than %d processes", MOST_PIDS);
        int error = clock_getcpuclockid((pid_t)pid, &window.clocks[window.pid_count++]);
        if (error != 0)
            die("the CPU clock of process %ld: %s", pid, strerror(error));
    }
}

static inline void sleep_until(uint64_t moment)
{
    struct timespec time = {.tv_sec = (time_t)(moment / SECOND), .tv_nsec = (long)(moment % SECOND)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL) == EINTR)
        ;
}

/* ---- sockets ------------------------------------------------------------------------------------------- */

static inline void set_no_delay(int fd)
{
    int on = 1;
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0)
        die_of_errno("TCP_NODELAY");
}

static inline struct sockaddr_in loopback(int port)
{
    return (struct sockaddr_in){
        .sin_family = AF_INET,
        .sin_port = htons((uint16_t)port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
}

static inline int listen_on_loopback(int socket_flags)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | socket_flags, 0);
    struct sockaddr_in address = loopback(0);
    socklen_t length = sizeof address;
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, length) != 0 || listen(fd, BACKLOG) != 0
        || getsockname(fd, (struct sockaddr *)&address, &length) != 0)
        die_of_errno("listen");
    printf("ready %d\n", ntohs(address.sin_port));
    return fd;
}

static inline int connect_to(int port)
{
    struct sockaddr_in address = loopback(port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
        die_of_errno("connect");
    return fd;
}

/* ---- latencies ----------------------------------------------------------------------------------------- */

struct latencies {
    uint64_t *each; /* every one: percentiles are exact */
    size_t count, capacity;
};

static inline void latencies_add(struct latencies *latencies, uint64_t latency)
{
    if (latencies->count == latencies->capacity) {
        latencies->capacity = latencies->capacity ? 2 * latencies->capacity : 1 << 18;
        latencies->each = realloc(latencies->each, latencies->capacity * sizeof *latencies->each);
        if (!latencies->each)
            die("out of memory");
    }
    latencies->each[latencies->count++] = latency;
}

static inline int compare_latencies(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

/* Of latencies in order. */
static inline double percentile(const struct latencies *latencies, double share)
{
    if (latencies->count == 0)
        return 0;
    size_t index = (size_t)(share * (double)latencies->count);
    size_t last = latencies->count - 1;
    return (double)latencies->each[index < last ? index : last] / 1e9;
}

/* The fields that an answer ends with, and the end of the object. */
static inline void latencies_print(struct latencies *latencies)
{
    qsort(latencies->each, latencies->count, sizeof *latencies->each, compare_latencies);
    printf(", \"messages\": %zu, \"p50\": %.9f, \"p99\": %.9f, \"p999\": %.9f}\n", latencies->count,
           percentile(latencies, 0.5), percentile(latencies, 0.99), percentile(latencies, 0.999));
}

/* ---- start --------------------------------------------------------------------------------------------- */

static inline void allow_many_fds(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static inline void prepare_process(void)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* nobody is left to stop us */
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
    allow_many_fds();
}

#endif
