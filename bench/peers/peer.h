/* What the ends of a measured connection have in common, whatever they speak: the window in which they observe,
 * and the latencies.
 */

#ifndef GSPLICE_BENCH_PEER_H
#define GSPLICE_BENCH_PEER_H

#include "sockets.h"
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>

enum {
    MOST_PIDS = 256,
    EVENTS_AT_ONCE = 256,
    LINE_LENGTH = 4096,
    MANY_FDS = 40000, /* for 10,000 relays, and what else is open */
};
static const uint64_t SECOND = 1000000000;
static const uint64_t LONGEST_START = 15000000000; /* until the last connection is through */
static const uint64_t LONGEST_DRAIN = 5000000000; /* for the last replies, after the window */

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

/* For a picture of the whole distribution. */
static const double SHARES[] = {0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999, 1};

/* The fields that an answer ends with, and the end of the object. */
static inline void latencies_print(struct latencies *latencies)
{
    qsort(latencies->each, latencies->count, sizeof *latencies->each, compare_latencies);
    printf(", \"messages\": %zu, \"p50\": %.9f, \"p99\": %.9f, \"p999\": %.9f, \"quantiles\": [", latencies->count,
           percentile(latencies, 0.5), percentile(latencies, 0.99), percentile(latencies, 0.999));
    for (size_t i = 0; i < sizeof SHARES / sizeof *SHARES; i++)
        printf("%s[%g, %.9f]", i ? ", " : "", SHARES[i], percentile(latencies, SHARES[i]));
    puts("]}");
}

/* ---- start --------------------------------------------------------------------------------------------- */

static inline void allow_many_fds(void)
{
    struct rlimit limit, more = {MANY_FDS, MANY_FDS};
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= MANY_FDS)
        return;
    if (limit.rlim_max >= MANY_FDS || setrlimit(RLIMIT_NOFILE, &more) != 0) { /* root may have more */
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static inline void start_thread(void *(*body)(void *), void *argument)
{
    pthread_t thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 128 * 1024);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    int error = pthread_create(&thread, &attributes, body, argument);
    if (error != 0)
        die("pthread_create: %s", strerror(error));
    pthread_attr_destroy(&attributes);
}

static inline void prepare_process(void)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* nobody is left to stop us */
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
    allow_many_fds();
}

#endif
