/* The clients of a relay under measurement whose connections last.
 *
 *     client write          ADDRESS SIZES CONNECTIONS   writes, one after another
 *     client write-no-delay ADDRESS SIZES CONNECTIONS   the same with TCP_NODELAY
 *     client ping           ADDRESS SIZES CONNECTIONS   messages, one in flight on each connection
 *
 * SIZES are those of the writes or messages, separated by commas: one after another, and then the first again. Each
 * connects to ADDRESS, says "ready" on standard output (a ping when a message has come back on each connection),
 * and ends at end of file on standard input. Commands:
 *
 *     greet                          write: once on each connection
 *     go                             write: then without a pause; it never stops by itself
 *     measure WARMUP SECONDS PID..   ping: wait WARMUP seconds, and observe as the sink in backend.c does
 *
 * One epoll_wait serves all connections: threads would take the CPU from a relay that has but one.
 */

#define _GNU_SOURCE
#include "peer.h"
#include <fcntl.h>
#include <sys/epoll.h>

static char payload[1 << 20]; /* what is sent; its content does not matter to a relay */

static struct {
    size_t each[64];
    int count;
} sizes;

static void read_sizes(char *text)
{
    for (char *word; (word = strsep(&text, ","));) {
        size_t size = (size_t)atol(word);
        if (size == 0 || size > sizeof payload || sizes.count == sizeof sizes.each / sizeof *sizes.each)
            die("up to 64 sizes of 1 to %zu", sizeof payload);
        sizes.each[sizes.count++] = size;
    }
}

/* The size that comes next on a connection that has had so many. */
static size_t next_size(unsigned *number)
{
    return sizes.each[(*number)++ % (unsigned)sizes.count];
}

/* It does not block from now on. */
static void watch(int poll, int fd, uint32_t events, void *what)
{
    struct epoll_event event = {.events = events, .data.ptr = what};
    if (fcntl(fd, F_SETFL, O_NONBLOCK) != 0)
        die_of_errno("fcntl");
    if (epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event) != 0)
        die_of_errno("epoll_ctl");
}

/* ---- write --------------------------------------------------------------------------------------------- */

struct writer {
    int fd;
    unsigned number; /* of writes that have begun */
    size_t left;     /* of the last of them */
};

/* Until the socket takes no more, or it is the others' turn. */
static void write_some(struct writer *writer, size_t at_once)
{
    for (size_t done = 0; done < at_once;) {
        if (writer->left == 0)
            writer->left = next_size(&writer->number);
        ssize_t sent = send(writer->fd, payload, writer->left, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN)
            return;
        if (sent < 0)
            die_of_errno("send");
        writer->left -= (size_t)sent;
        done += (size_t)sent;
    }
}

static void *write_for_ever(void *argument)
{
    int poll = *(int *)argument;
    for (;;) {
        struct epoll_event events[EVENTS_AT_ONCE];
        int count = epoll_wait(poll, events, EVENTS_AT_ONCE, -1);
        for (int i = 0; i < count; i++)
            write_some(events[i].data.ptr, 1 << 18);
    }
    return NULL;
}

static void run_write(const struct address *relay, int connections, int no_delay)
{
    char line[LINE_LENGTH];
    int poll = epoll_create1(EPOLL_CLOEXEC);
    struct writer *writers = calloc((size_t)connections, sizeof *writers);
    for (int i = 0; i < connections; i++) {
        writers[i].fd = connect_to(relay);
        if (no_delay)
            set_no_delay(writers[i].fd);
        watch(poll, writers[i].fd, EPOLLOUT, &writers[i]);
    }
    puts("ready");
    if (fgets(line, sizeof line, stdin)) /* "greet" */
        for (int i = 0; i < connections; i++)
            write_some(&writers[i], 1);
    if (fgets(line, sizeof line, stdin)) /* "go" */
        start_thread(write_for_ever, &poll);
    while (fgets(line, sizeof line, stdin))
        ;
}

/* ---- ping ---------------------------------------------------------------------------------------------- */

struct pinger {
    int fd, tcp;
    unsigned number; /* of messages that have begun */
    size_t to_send, to_receive;
    uint64_t started;
};

static struct {
    int poll, connections, in_flight;
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
    pinger->to_send = pinger->to_receive = next_size(&pinger->number);
    pinger->started = moment;
    ping_send(pinger);
}

/* What has come; 0 is nothing for now. */
static size_t ping_receive(struct pinger *pinger)
{
    ssize_t count = discard(pinger->fd, pinger->tcp);
    if (count < 0 && errno == EAGAIN)
        return 0;
    if (count <= 0)
        die("the relay ended a connection: %s", count ? strerror(errno) : "end of file");
    if ((size_t)count > pinger->to_receive)
        die("%zd bytes came back where %zu were due", count, pinger->to_receive);
    return (size_t)count;
}

static void ping_has_returned(struct pinger *pinger)
{
    uint64_t moment = now();
    if (ping.phase == OBSERVING)
        latencies_add(&ping.latencies, moment - pinger->started);
    if (ping.phase == STOPPING)
        ping.in_flight--;
    else
        ping_begin(pinger, moment);
}

/* Edge-triggered: what TCP has is discarded at once, a unix socket is read until it has no more. */
static void ping_on_event(struct pinger *pinger)
{
    size_t count;
    ping_send(pinger);
    do {
        count = ping_receive(pinger);
        pinger->to_receive -= count;
        if (count > 0 && pinger->to_receive == 0)
            ping_has_returned(pinger);
    } while (count > 0 && !pinger->tcp);
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

static void ping_begin_on(struct pinger *pingers, int count)
{
    ping.in_flight = count;
    for (int i = 0; i < count; i++)
        ping_begin(&pingers[i], now());
}

static void ping_await_last(uint64_t deadline)
{
    while (ping.in_flight > 0) {
        if (now() > deadline)
            die("%d replies never came", ping.in_flight);
        ping_wait(deadline);
    }
}

static void ping_measure(struct window *window)
{
    ping.latencies.count = 0;
    ping.phase = WARMING_UP;
    ping_begin_on(ping.pingers, ping.connections);
    while (now() < window->begin)
        ping_wait(window->begin);
    window_open(window);
    ping.phase = OBSERVING;
    while (now() < window->end)
        ping_wait(window->end);
    window_close(window);
    ping.phase = STOPPING;
    ping_await_last(now() + LONGEST_DRAIN);
}

static void ping_connect(struct pinger *pinger, const struct address *relay)
{
    pinger->fd = connect_to(relay);
    pinger->tcp = is_tcp(pinger->fd);
    set_no_delay(pinger->fd);
    watch(ping.poll, pinger->fd, EPOLLIN | EPOLLOUT | EPOLLET, pinger);
}

/* Some at a time, each with a message there and back: more at once would be more than a backlog holds. */
static void ping_connect_all(const struct address *relay)
{
    enum { AT_ONCE = 512 };
    ping.phase = STOPPING;
    for (int first = 0; first < ping.connections; first += AT_ONCE) {
        int count = ping.connections - first < AT_ONCE ? ping.connections - first : AT_ONCE;
        for (int i = first; i < first + count; i++)
            ping_connect(&ping.pingers[i], relay);
        ping_begin_on(&ping.pingers[first], count);
        ping_await_last(now() + LONGEST_START);
    }
}

static void run_ping(const struct address *relay, int connections)
{
    char line[LINE_LENGTH];
    ping.poll = epoll_create1(EPOLL_CLOEXEC);
    ping.connections = connections;
    ping.pingers = calloc((size_t)connections, sizeof *ping.pingers);
    ping_connect_all(relay);
    puts("ready");
    while (fgets(line, sizeof line, stdin)) {
        struct window window = window_from_command(line);
        ping_measure(&window);
        window_print(&window);
        latencies_print(&ping.latencies);
    }
}

/* ---- start --------------------------------------------------------------------------------------------- */

static void run_client(const char *role, char **words)
{
    struct address relay = address_from(words[0]);
    int connections = atoi(words[2]);
    read_sizes(words[1]);
    if (strcmp(role, "ping") == 0)
        run_ping(&relay, connections);
    else
        run_write(&relay, connections, strcmp(role, "write-no-delay") == 0);
}

int main(int argc, char **argv)
{
    prepare_process();
    const char *role = argc > 1 ? argv[1] : "";
    if (argc != 5 || (strncmp(role, "write", 5) != 0 && strcmp(role, "ping") != 0))
        die("usage: client (write | write-no-delay | ping) ADDRESS SIZES CONNECTIONS");
    run_client(role, argv + 2);
    return 0;
}
