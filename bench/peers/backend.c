/* The backends of a relay under measurement.
 *
 *     backend sink ADDRESS CONNECTIONS   discards what it is sent, and counts it
 *     backend echo ADDRESS               sends back as many bytes as it is sent
 *
 * Each listens, says "ready ADDRESS" on standard output, and ends at end of file on standard input. A sink takes a
 * command, as often as it is given:
 *
 *     measure WARMUP SECONDS PID..   wait until something has come on CONNECTIONS connections, and then WARMUP
 *                                    seconds; observe for SECONDS; answer with one line of JSON
 *
 * The answer holds the CPU seconds that each PID used in that very window: they are read here, where the window
 * is, so that the two cannot drift apart.
 *
 * No end may be what limits a relay. So none copies what it receives: MSG_TRUNC drops it in the kernel (a unix
 * socket has to copy it). The Python programs of the same names do the same, slowly, for a machine without a C
 * compiler.
 */

#define _GNU_SOURCE
#include "peer.h"
#include <stdatomic.h>
#include <sys/epoll.h>

static char payload[1 << 20]; /* what an echo sends; its content does not matter to a relay */

/* ---- sink ---------------------------------------------------------------------------------------------- */

/* One for each connection there ever was, on a cache line of its own; none is freed, so that a sum stays right. */
struct drain {
    _Alignas(64) atomic_ullong bytes;
    int fd;
    struct drain *next;
};
static _Atomic(struct drain *) drains;

static void *drain_connection(void *argument)
{
    struct drain *drain = argument;
    int tcp = is_tcp(drain->fd);
    for (;;) {
        ssize_t count = discard(drain->fd, tcp);
        if (count <= 0)
            break;
        atomic_fetch_add_explicit(&drain->bytes, (unsigned long long)count, memory_order_relaxed);
    }
    close(drain->fd);
    return NULL;
}

static void *accept_drains(void *argument)
{
    int listener = *(int *)argument;
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            die_of_errno("accept");
        struct drain *drain = aligned_alloc(64, sizeof *drain);
        if (!drain)
            die("out of memory");
        *drain = (struct drain){.fd = fd, .next = atomic_load(&drains)};
        atomic_store(&drains, drain); /* this thread is the only one that adds */
        start_thread(drain_connection, drain);
    }
    return NULL;
}

static unsigned long long bytes_drained(void)
{
    unsigned long long sum = 0;
    for (struct drain *drain = atomic_load(&drains); drain; drain = drain->next)
        sum += atomic_load_explicit(&drain->bytes, memory_order_relaxed);
    return sum;
}

static int connections_in_use(void)
{
    int sum = 0;
    for (struct drain *drain = atomic_load(&drains); drain; drain = drain->next)
        sum += atomic_load_explicit(&drain->bytes, memory_order_relaxed) > 0;
    return sum;
}

static void await_connections(int due)
{
    uint64_t deadline = now() + LONGEST_START;
    while (connections_in_use() < due) {
        if (now() > deadline)
            die("something came on %d connections of %d", connections_in_use(), due);
        sleep_until(now() + SECOND / 1000);
    }
}

static void run_sink(const char *address, int connections)
{
    char line[LINE_LENGTH];
    static int listener;
    listener = listen_at(address, 0);
    start_thread(accept_drains, &listener);
    while (fgets(line, sizeof line, stdin)) {
        await_connections(connections);
        struct window window = window_from_command(line);
        sleep_until(window.begin);
        window_open(&window);
        unsigned long long before = bytes_drained();
        sleep_until(window.end);
        unsigned long long after = bytes_drained();
        window_close(&window);
        window_print(&window);
        printf(", \"bytes\": %llu}\n", after - before);
    }
}

/* ---- echo ---------------------------------------------------------------------------------------------- */

struct echo {
    int fd, tcp;
    size_t owed; /* bytes received and not yet sent back */
};

/* False once the connection is over. */
static int echo_send(struct echo *echo)
{
    while (echo->owed > 0) {
        size_t length = echo->owed < sizeof payload ? echo->owed : sizeof payload;
        ssize_t sent = send(echo->fd, payload, length, MSG_NOSIGNAL);
        if (sent < 0)
            return errno == EAGAIN;
        echo->owed -= (size_t)sent;
    }
    return 1;
}

/* Edge-triggered: TCP's discard takes all there is, so what comes later is a new edge. An end of file that came
 * with the last bytes is not: it is looked for when the event names it. A unix socket is read until it has no more. */
static int echo_on_event(struct echo *echo, uint32_t events)
{
    int until_the_end = !echo->tcp || (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
    do {
        ssize_t count = discard(echo->fd, echo->tcp);
        if (count == 0 || (count < 0 && errno != EAGAIN))
            return 0;
        if (count < 0)
            break;
        echo->owed += (size_t)count;
    } while (until_the_end);
    return echo_send(echo);
}

static void echo_accept(int poll, int listener)
{
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 && errno == EAGAIN)
            return;
        if (fd < 0)
            die_of_errno("accept");
        set_no_delay(fd);
        struct echo *echo = malloc(sizeof *echo);
        if (!echo)
            die("out of memory");
        *echo = (struct echo){.fd = fd, .tcp = is_tcp(fd)};
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = echo};
        if (epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event) != 0)
            die_of_errno("epoll_ctl");
    }
}

static void echo_watch(int poll, int *fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = fd};
    if (epoll_ctl(poll, EPOLL_CTL_ADD, *fd, &event) != 0)
        die_of_errno("epoll_ctl");
}

static void run_echo(const char *address)
{
    int poll = epoll_create1(EPOLL_CLOEXEC);
    int listener = listen_at(address, SOCK_NONBLOCK), commands = STDIN_FILENO;
    echo_watch(poll, &listener);
    echo_watch(poll, &commands);
    for (;;) {
        struct epoll_event events[EVENTS_AT_ONCE];
        int count = epoll_wait(poll, events, EVENTS_AT_ONCE, -1);
        for (int i = 0; i < count; i++) {
            struct echo *echo = events[i].data.ptr;
            if (events[i].data.ptr == &commands)
                return; /* it takes no command: this is end of file */
            if (events[i].data.ptr == &listener)
                echo_accept(poll, listener);
            else if (!echo_on_event(echo, events[i].events)) {
                close(echo->fd);
                free(echo);
            }
        }
    }
}

/* ---- start --------------------------------------------------------------------------------------------- */

int main(int argc, char **argv)
{
    prepare_process();
    const char *role = argc > 1 ? argv[1] : "";
    if (argc == 4 && strcmp(role, "sink") == 0)
        run_sink(argv[2], atoi(argv[3]));
    else if (argc == 3 && strcmp(role, "echo") == 0)
        run_echo(argv[2]);
    else
        die("usage: backend sink ADDRESS CONNECTIONS | backend echo ADDRESS");
    return 0;
}
