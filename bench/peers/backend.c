/* The backends of a relay under measurement.
 *
 *     backend sink ADDRESS   discards what it is sent, and counts it
 *     backend echo ADDRESS   sends back as many bytes as it is sent
 *
 * Each listens, says "ready ADDRESS" on standard output, and ends at end of file on standard input. A sink takes
 * commands:
 *
 *     await N                        say so when something has come on N connections, since the beginning
 *     measure WARMUP SECONDS PID..   wait WARMUP seconds, observe for SECONDS, answer with one line of JSON
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

static void watch(int poll, int fd, uint32_t events, void *what)
{
    struct epoll_event event = {.events = events, .data.ptr = what};
    if (epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event) != 0)
        die_of_errno("epoll_ctl");
}

/* -1 when nobody waits. */
static int accept_one(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0 && errno != EAGAIN)
        die_of_errno("accept");
    return fd;
}

/* ---- sink ---------------------------------------------------------------------------------------------- */

struct drain {
    int fd, tcp, in_use;
};

static atomic_ullong bytes_drained;
static atomic_int connections_in_use; /* how many have carried something, since the beginning */

static void drain_accept(int poll, int listener)
{
    int fd = accept_one(listener);
    struct drain *drain = fd < 0 ? NULL : malloc(sizeof *drain);
    if (!drain)
        return;
    *drain = (struct drain){.fd = fd, .tcp = is_tcp(fd)};
    watch(poll, fd, EPOLLIN, drain);
}

static void drain_on_event(struct drain *drain)
{
    ssize_t count = discard(drain->fd, drain->tcp);
    if (count > 0) {
        bytes_drained += (unsigned long long)count;
        connections_in_use += !drain->in_use;
        drain->in_use = 1;
    } else if (count == 0 || errno != EAGAIN) {
        close(drain->fd);
        free(drain);
    }
}

static void *drain_all(void *argument)
{
    int listener = *(int *)argument, poll = epoll_create1(EPOLL_CLOEXEC);
    watch(poll, listener, EPOLLIN, argument);
    for (;;) {
        struct epoll_event events[EVENTS_AT_ONCE];
        int count = epoll_wait(poll, events, EVENTS_AT_ONCE, -1);
        for (int i = 0; i < count; i++)
            if (events[i].data.ptr == argument)
                drain_accept(poll, listener);
            else
                drain_on_event(events[i].data.ptr);
    }
    return NULL;
}

static void await_connections(int due)
{
    uint64_t deadline = now() + LONGEST_START;
    while (connections_in_use < due) {
        if (now() > deadline)
            die("something came on %d connections of %d", connections_in_use, due);
        sleep_until(now() + SECOND / 1000);
    }
    puts("they have come");
}

static void sink_measure(char *command)
{
    struct window window = window_from_command(command);
    sleep_until(window.begin);
    window_open(&window);
    unsigned long long before = bytes_drained;
    sleep_until(window.end);
    unsigned long long after = bytes_drained;
    window_close(&window);
    window_print(&window);
    printf(", \"bytes\": %llu}\n", after - before);
}

static void run_sink(const char *address)
{
    char line[LINE_LENGTH];
    static int listener;
    listener = listen_at(address, SOCK_NONBLOCK);
    start_thread(drain_all, &listener);
    while (fgets(line, sizeof line, stdin))
        if (strncmp(line, "await ", 6) == 0)
            await_connections(atoi(line + 6));
        else
            sink_measure(line);
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
    for (int fd; (fd = accept_one(listener)) >= 0;) {
        set_no_delay(fd);
        struct echo *echo = malloc(sizeof *echo);
        if (!echo)
            die("out of memory");
        *echo = (struct echo){.fd = fd, .tcp = is_tcp(fd)};
        watch(poll, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, echo);
    }
}

static void run_echo(const char *address)
{
    int poll = epoll_create1(EPOLL_CLOEXEC);
    int listener = listen_at(address, SOCK_NONBLOCK), commands = STDIN_FILENO;
    watch(poll, listener, EPOLLIN, &listener);
    watch(poll, commands, EPOLLIN, &commands);
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
    if (argc == 3 && strcmp(role, "sink") == 0)
        run_sink(argv[2]);
    else if (argc == 3 && strcmp(role, "echo") == 0)
        run_echo(argv[2]);
    else
        die("usage: backend (sink | echo) ADDRESS");
    return 0;
}
