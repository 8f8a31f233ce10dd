/* The clients of a relay under measurement that make a connection for each of what they do.
 *
 *     connections exchange ADDRESS SIZE CONNECTIONS   send SIZE bytes, get as many back, close
 *     connections transfer ADDRESS SIZE CONNECTIONS   send SIZE bytes and end of file, wait for end of file, close
 *     connections fetch    ADDRESS SIZE CONNECTIONS   get SIZE bytes and end of file, close
 *
 * CONNECTIONS threads do so at the same time, each again and again. It says "ready" on standard output, ends at end of
 * file on standard input, and takes a command, as often as it is given:
 *
 *     measure WARMUP SECONDS PID..   observe as the sink in backend.c does
 *
 * What counts is what ends within the window; a latency is from before connect() until the last byte, or the end of
 * file that is waited for.
 */

#define _GNU_SOURCE
#include "peer.h"
#include <stdatomic.h>

static char payload[1 << 18]; /* what is sent; its content does not matter to a relay */

static struct {
    struct address relay;
    size_t send, receive;
    int ends_sending, awaits_end;
    int connections;
} plan;

static enum { IDLE, WARMING_UP, OBSERVING } _Atomic phase;
static atomic_int at_work;
static struct latencies *latencies_of; /* by thread, so that none waits for another */

static void send_all(int fd)
{
    for (size_t done = 0; done < plan.send;) {
        size_t left = plan.send - done;
        ssize_t sent = send(fd, payload, left < sizeof payload ? left : sizeof payload, MSG_NOSIGNAL);
        if (sent < 0)
            die_of_errno("send");
        done += (size_t)sent;
    }
    if (plan.ends_sending && shutdown(fd, SHUT_WR) != 0)
        die_of_errno("shutdown");
}

static void receive_all(int fd)
{
    int tcp = is_tcp(fd);
    size_t received = 0;
    while (received < plan.receive || plan.awaits_end) {
        ssize_t count = discard(fd, tcp);
        if (count < 0)
            die_of_errno("recv");
        if (count == 0)
            break;
        received += (size_t)count;
    }
    if (received != plan.receive)
        die("%zu bytes came where %zu were due", received, plan.receive);
}

static void one_connection(void)
{
    int fd = connect_to(&plan.relay);
    set_no_delay(fd);
    send_all(fd);
    receive_all(fd);
    close(fd);
}

static void *one_after_another(void *argument)
{
    struct latencies *latencies = argument;
    while (phase != IDLE) {
        uint64_t started = now();
        one_connection();
        if (phase == OBSERVING)
            latencies_add(latencies, now() - started);
    }
    at_work--;
    return NULL;
}

static void observe(struct window *window)
{
    at_work = plan.connections;
    phase = WARMING_UP;
    for (int i = 0; i < plan.connections; i++) {
        latencies_of[i].count = 0;
        start_thread(one_after_another, &latencies_of[i]);
    }
    sleep_until(window->begin);
    window_open(window);
    phase = OBSERVING;
    sleep_until(window->end);
    phase = IDLE;
    window_close(window);
}

static void await_last(void)
{
    uint64_t deadline = now() + LONGEST_DRAIN;
    while (at_work > 0) {
        if (now() > deadline)
            die("%d connections of %d never came to their end", at_work, plan.connections);
        sleep_until(now() + SECOND / 1000);
    }
}

static struct latencies all_latencies(void)
{
    struct latencies all = {0};
    for (int i = 0; i < plan.connections; i++)
        for (size_t j = 0; j < latencies_of[i].count; j++)
            latencies_add(&all, latencies_of[i].each[j]);
    return all;
}

static void run(void)
{
    char line[LINE_LENGTH];
    latencies_of = calloc((size_t)plan.connections, sizeof *latencies_of);
    puts("ready");
    while (fgets(line, sizeof line, stdin)) {
        struct window window = window_from_command(line);
        observe(&window);
        await_last();
        struct latencies all = all_latencies();
        window_print(&window);
        latencies_print(&all);
        free(all.each);
    }
}

int main(int argc, char **argv)
{
    prepare_process();
    const char *role = argc == 5 ? argv[1] : "";
    int exchange = strcmp(role, "exchange") == 0, transfer = strcmp(role, "transfer") == 0;
    int fetch = strcmp(role, "fetch") == 0;
    if (!exchange && !transfer && !fetch)
        die("usage: connections (exchange | transfer | fetch) ADDRESS SIZE CONNECTIONS");
    size_t size = (size_t)atol(argv[3]);
    plan.relay = address_from(argv[2]);
    plan.send = fetch ? 0 : size;
    plan.receive = transfer ? 0 : size;
    plan.ends_sending = transfer;
    plan.awaits_end = !exchange;
    plan.connections = atoi(argv[4]);
    run();
    return 0;
}
