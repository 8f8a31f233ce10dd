/* The two ends of a relay under measurement: a client and a backend.
 *
 *     peer sink                          backend: discards what it is sent, and counts it
 *     peer echo                          backend: sends back as many bytes as it is sent
 *     peer write PORT SIZE CONNECTIONS   client: writes of SIZE bytes, one after another
 *     peer ping  PORT SIZE CONNECTIONS   client: messages of SIZE bytes, one in flight on each connection
 *
 * Each says "ready" on standard output (a backend adds its port), takes commands as lines on standard input,
 * and ends at end of file there. The commands:
 *
 *     go                            write: begin; it never stops by itself
 *     measure WARMUP SECONDS PID..  sink, ping: wait WARMUP seconds, observe for SECONDS, and answer with one
 *                                   line of JSON. It holds the CPU seconds that each PID used in that very
 *                                   window: read here, where the window is, so that the two cannot drift apart.
 *
 * Neither end may be what limits a relay, so neither ever copies what it receives (MSG_TRUNC drops it in the
 * kernel), and one epoll_wait serves every connection of a ping-pong. bench/peer.py does the same, slowly,
 * for a machine without a C compiler.
 */

#define _GNU_SOURCE
#include "peer.h"
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/epoll.h>

static char payload[1 << 20]; /* what is sent; its content does not matter to a relay */

static void start_thread(void *(*body)(void *), void *argument)
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
    for (;;) {
        ssize_t count = recv(drain->fd, NULL, DISCARD_AT_ONCE, MSG_TRUNC);
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

static void run_sink(void)
{
    char line[LINE_LENGTH];
    static int listener;
    listener = listen_on_loopback(0);
    start_thread(accept_drains, &listener);
    while (fgets(line, sizeof line, stdin)) {
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
    int fd;
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

/* Edge-triggered: a receive takes all there is, so what comes later is a new edge. An end of file that came
 * with the last bytes is not: it is looked for when the event names it. */
static int echo_on_event(struct echo *echo, uint32_t events)
{
    int until_the_end = (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
    do {
        ssize_t count = recv(echo->fd, NULL, DISCARD_AT_ONCE, MSG_TRUNC);
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
        *echo = (struct echo){.fd = fd};
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

static void run_echo(void)
{
    int poll = epoll_create1(EPOLL_CLOEXEC);
    int listener = listen_on_loopback(SOCK_NONBLOCK), commands = STDIN_FILENO;
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

/* ---- write --------------------------------------------------------------------------------------------- */

struct writer {
    int fd;
    size_t size;
};

static void *write_for_ever(void *argument)
{
    struct writer *writer = argument;
    for (;;) {
        for (size_t done = 0; done < writer->size;) {
            ssize_t sent = send(writer->fd, payload, writer->size - done, MSG_NOSIGNAL);
            if (sent < 0)
                die_of_errno("send");
            done += (size_t)sent;
        }
    }
    return NULL;
}

static void run_write(int port, size_t size, int connections, int no_delay)
{
    char line[LINE_LENGTH];
    if (size > sizeof payload)
        die("a size of at most %zu", sizeof payload);
    struct writer *writers = calloc((size_t)connections, sizeof *writers);
    for (int i = 0; i < connections; i++) {
        writers[i] = (struct writer){.fd = connect_to(port), .size = size};
        if (no_delay)
            set_no_delay(writers[i].fd);
    }
    puts("ready");
    if (fgets(line, sizeof line, stdin)) /* "go" */
        for (int i = 0; i < connections; i++)
            start_thread(write_for_ever, &writers[i]);
    while (fgets(line, sizeof line, stdin))
        ;
}

/* ---- ping ---------------------------------------------------------------------------------------------- */

struct pinger {
    int fd;
    size_t to_send, to_receive;
    uint64_t started;
};

static struct {
    int poll, connections, in_flight;
    size_t size;
    struct pinger *pingers;
    struct latencies latencies;
    enum { WARMING_UP, OBSERVING, STOPPING } phase;
} ping;

static void ping_send(struct pinger *pinger)
{
    while (pinger->to_send > 0) {
        ssize_t sent = send(pinger->fd, payload, pinger->to_send, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN)
            return;
        if (sent < 0)
            die_of_errno("send");
        pinger->to_send -= (size_t)sent;
    }
}

static void ping_begin(struct pinger *pinger, uint64_t moment)
{
    pinger->to_send = pinger->to_receive = ping.size;
    pinger->started = moment;
    ping_send(pinger);
}

static void ping_on_event(struct pinger *pinger)
{
    ping_send(pinger);
    ssize_t count = recv(pinger->fd, NULL, DISCARD_AT_ONCE, MSG_TRUNC);
    if (count < 0 && errno == EAGAIN)
        return;
    if (count <= 0)
        die("the relay ended a connection: %s", count ? strerror(errno) : "end of file");
    if ((size_t)count > pinger->to_receive)
        die("%zd bytes came back where %zu were due", count, pinger->to_receive);
    pinger->to_receive -= (size_t)count;
    if (pinger->to_receive > 0)
        return;
    uint64_t moment = now();
    if (ping.phase == OBSERVING)
        latencies_add(&ping.latencies, moment - pinger->started);
    if (ping.phase == STOPPING)
        ping.in_flight--;
    else
        ping_begin(pinger, moment);
}

static void ping_wait(uint64_t until)
{
    struct epoll_event events[EVENTS_AT_ONCE];
    uint64_t moment = now();
    int milliseconds = until > moment ? (int)((until - moment) / 1000000) + 1 : 0;
    int count = epoll_wait(ping.poll, events, EVENTS_AT_ONCE, milliseconds);
    for (int i = 0; i < count; i++)
        ping_on_event(events[i].data.ptr);
}

static void ping_measure(struct window *window)
{
    ping.latencies.count = 0;
    ping.phase = WARMING_UP;
    ping.in_flight = ping.connections;
    for (int i = 0; i < ping.connections; i++)
        ping_begin(&ping.pingers[i], now());
    while (now() < window->begin)
        ping_wait(window->begin);
    window_open(window);
    ping.phase = OBSERVING;
    while (now() < window->end)
        ping_wait(window->end);
    window_close(window);
    ping.phase = STOPPING;
    uint64_t deadline = now() + LONGEST_DRAIN;
    while (ping.in_flight > 0) {
        if (now() > deadline)
            die("%d replies of %d never came", ping.in_flight, ping.connections);
        ping_wait(deadline);
    }
}

static void ping_connect(int port)
{
    for (int i = 0; i < ping.connections; i++) {
        struct pinger *pinger = &ping.pingers[i];
        pinger->fd = connect_to(port);
        set_no_delay(pinger->fd);
        if (fcntl(pinger->fd, F_SETFL, O_NONBLOCK) != 0)
            die_of_errno("fcntl");
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = pinger};
        if (epoll_ctl(ping.poll, EPOLL_CTL_ADD, pinger->fd, &event) != 0)
            die_of_errno("epoll_ctl");
    }
}

static void run_ping(int port, size_t size, int connections)
{
    char line[LINE_LENGTH];
    if (size > sizeof payload)
        die("a size of at most %zu", sizeof payload);
    ping.poll = epoll_create1(EPOLL_CLOEXEC);
    ping.size = size;
    ping.connections = connections;
    ping.pingers = calloc((size_t)connections, sizeof *ping.pingers);
    ping_connect(port);
    puts("ready");
    while (fgets(line, sizeof line, stdin)) {
        struct window window = window_from_command(line);
        ping_measure(&window);
        window_print(&window);
        latencies_print(&ping.latencies);
    }
}

/* ---- start --------------------------------------------------------------------------------------------- */

int main(int argc, char **argv)
{
    prepare_process();
    const char *role = argc > 1 ? argv[1] : "";
    if (argc == 2 && strcmp(role, "sink") == 0)
        run_sink();
    else if (argc == 2 && strcmp(role, "echo") == 0)
        run_echo();
    else if (argc == 5 && strcmp(role, "write") == 0)
        run_write(atoi(argv[2]), (size_t)atol(argv[3]), atoi(argv[4]), 0);
    else if (argc == 5 && strcmp(role, "write-no-delay") == 0)
        run_write(atoi(argv[2]), (size_t)atol(argv[3]), atoi(argv[4]), 1);
    else if (argc == 5 && strcmp(role, "ping") == 0)
        run_ping(atoi(argv[2]), (size_t)atol(argv[3]), atoi(argv[4]));
    else
        die("usage: peer sink | echo | (write | write-no-delay | ping) PORT SIZE CONNECTIONS");
    return 0;
}
