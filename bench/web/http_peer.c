/* The two ends of an HTTP server under measurement: a client, and a backend for what is uploaded.
 *
 *     http_peer get  ADDRESS PATH SIZE CONNECTIONS   client: asks for PATH, whose body has SIZE bytes
 *     http_peer post ADDRESS PATH SIZE CONNECTIONS   client: sends PATH a body of SIZE bytes
 *     http_peer sink                              backend: discards the body of each request, and answers it
 *
 * Each says "ready" on standard output (a backend adds its address) and ends at end of file on standard input. A
 * client has one request in flight on each connection, and keeps a connection for as long as the server does.
 * It takes commands, as often as they are given:
 *
 *     measure WARMUP SECONDS PID..   observe as bench/peers/backend.c does, and answer with one line of JSON
 *     batch SKIPPED COUNT            the same for COUNT responses, after the first SKIPPED ones; the CPU is what
 *                                    the server says it had used, in nanoseconds in a field X-CPU-Used
 *
 * The window opens when the first response is complete that has taken longer than the warm-up, and it closes
 * with the first one that is complete SECONDS later: on one connection it holds whole exchanges, so that
 * whatever a server does at the beginning or at the end of a body is in its figures as often as it was done.
 *
 * No body is ever copied here: what is received is dropped in the kernel (MSG_TRUNC), what is sent comes from
 * the page cache (sendfile). Of HTTP there is what is needed: whatever has a body has a
 * Content-Length.
 */

#define _GNU_SOURCE
#include "peer.h"
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/sendfile.h>

enum { HEAD_SIZE = 16 * 1024 };
static const char CPU_USED[] = "\r\nX-CPU-Used:";

static void watch(int poll, int fd, uint32_t events, void *what)
{
    struct epoll_event event = {.events = events, .data.ptr = what};
    if (epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event) != 0)
        die_of_errno("epoll_ctl");
}

/* ---- messages ------------------------------------------------------------------------------------------ */

struct message {
    int has_head;
    size_t head_length;
    long long length, body_left; /* once it has a head */
    char head[HEAD_SIZE + 1];
};

enum progress { WAITING, COMPLETE, CLOSED };

static void message_begin(struct message *message)
{
    message->has_head = 0;
    message->head_length = 0;
}

/* 0 where there is none. */
static long long number_in(const char *head, const char *name)
{
    const char *field = strcasestr(head, name);
    return field ? atoll(field + strlen(name)) : 0;
}

/* Without one, a request has no body, and a response is not what was asked for. */
static long long content_length(const char *head)
{
    return number_in(head, "\r\nContent-Length:");
}

/* What came with the head belongs to the body. */
static void message_look_for_body(struct message *message)
{
    message->head[message->head_length] = '\0';
    char *end = strstr(message->head, "\r\n\r\n");
    if (!end && message->head_length == HEAD_SIZE)
        die("a head of more than %d bytes", HEAD_SIZE);
    if (!end)
        return;
    long long came = (long long)(message->head + message->head_length - (end + 4));
    end[2] = '\0';
    message->has_head = 1;
    message->length = content_length(message->head);
    message->body_left = message->length - came;
    if (message->body_left < 0)
        die("more bytes than the length that was given in: %s", message->head);
}

/* Until there is nothing more to receive: on the next edge, it goes on. */
static enum progress message_receive(struct message *message, int fd)
{
    for (;;) {
        ssize_t count;
        if (message->has_head && message->body_left == 0)
            return COMPLETE;
        if (message->has_head) {
            long long most = message->body_left < DISCARD_AT_ONCE ? message->body_left : DISCARD_AT_ONCE;
            count = recv(fd, NULL, (size_t)most, MSG_TRUNC);
        } else
            count = recv(fd, message->head + message->head_length, HEAD_SIZE - message->head_length, 0);
        if (count < 0 && errno == EAGAIN)
            return WAITING;
        if (count <= 0)
            return CLOSED;
        if (message->has_head)
            message->body_left -= count;
        else {
            message->head_length += (size_t)count;
            message_look_for_body(message);
        }
    }
}

/* ---- sink ---------------------------------------------------------------------------------------------- */

struct upload {
    int fd;
    struct message request;
};

static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

static void upload_accept(int poll, int listener)
{
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 && errno == EAGAIN)
            return;
        struct upload *upload = malloc(sizeof *upload);
        if (fd < 0 || !upload)
            die_of_errno("accept");
        set_no_delay(fd);
        upload->fd = fd;
        message_begin(&upload->request);
        watch(poll, fd, EPOLLIN | EPOLLRDHUP | EPOLLET, upload);
    }
}

static void upload_on_event(struct upload *upload)
{
    enum progress progress;
    while ((progress = message_receive(&upload->request, upload->fd)) == COMPLETE) {
        send(upload->fd, answer, sizeof answer - 1, MSG_NOSIGNAL); /* always fits */
        message_begin(&upload->request);
    }
    if (progress == CLOSED) {
        close(upload->fd);
        free(upload);
    }
}

static void run_sink(void)
{
    int poll = epoll_create1(EPOLL_CLOEXEC);
    int listener = listen_at("127.0.0.1:0", SOCK_NONBLOCK), commands = STDIN_FILENO;
    watch(poll, listener, EPOLLIN, &listener);
    watch(poll, commands, EPOLLIN, &commands);
    for (;;) {
        struct epoll_event events[EVENTS_AT_ONCE];
        int count = epoll_wait(poll, events, EVENTS_AT_ONCE, -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr == &commands)
                return; /* it takes no command: this is end of file */
            if (events[i].data.ptr == &listener)
                upload_accept(poll, listener);
            else
                upload_on_event(events[i].data.ptr);
        }
    }
}

/* ---- get, post ----------------------------------------------------------------------------------------- */

struct exchange {
    int fd;
    size_t head_sent;
    off_t body_sent;
    struct message response;
    uint64_t started;
};

static struct {
    struct address server;
    int poll, connections, in_flight;
    char request[HEAD_SIZE];
    size_t request_length;
    int body; /* a file, for post */
    off_t to_send;
    long long to_receive; /* -1 for any */
    struct exchange *exchanges;
    struct window *window;
    struct latencies latencies;
    size_t responses, skipped, batch; /* so far; of a batch; 0 where the clock tells the end */
    long long server_cpu;             /* in a batch */
    enum { WARMING_UP, OBSERVING, STOPPING } phase;
} client;

static int exchange_would_block(void)
{
    if (errno != EAGAIN)
        die_of_errno("send");
    return 1;
}

static void exchange_send(struct exchange *exchange)
{
    int flags = MSG_NOSIGNAL | (client.to_send ? MSG_MORE : 0);
    while (exchange->head_sent < client.request_length) {
        size_t left = client.request_length - exchange->head_sent;
        ssize_t sent = send(exchange->fd, client.request + exchange->head_sent, left, flags);
        if (sent < 0 && exchange_would_block())
            return;
        exchange->head_sent += (size_t)sent;
    }
    while (exchange->body_sent < client.to_send) {
        size_t left = (size_t)(client.to_send - exchange->body_sent);
        if (sendfile(exchange->fd, client.body, &exchange->body_sent, left) < 0 && exchange_would_block())
            return;
    }
}

static void exchange_begin(struct exchange *exchange)
{
    message_begin(&exchange->response);
    exchange->head_sent = 0;
    exchange->body_sent = 0;
    exchange->started = now();
    exchange_send(exchange);
}

static void exchange_connect(struct exchange *exchange)
{
    exchange->fd = connect_to(&client.server);
    set_no_delay(exchange->fd);
    if (fcntl(exchange->fd, F_SETFL, O_NONBLOCK) != 0)
        die_of_errno("fcntl");
    watch(client.poll, exchange->fd, EPOLLIN | EPOLLOUT | EPOLLET, exchange);
}

/* A page that says what is wrong is not to be taken for a fast answer. */
static void exchange_check(const struct message *response)
{
    const char *head = response->head;
    if (strncmp(head, "HTTP/1.1 200 ", 13) != 0 && strncmp(head, "HTTP/1.0 200 ", 13) != 0)
        die("an answer of %.*s", (int)strcspn(head, "\r\n"), head);
    if (client.to_receive >= 0 && response->length != client.to_receive)
        die("an answer of another size than %lld: %s", client.to_receive, head);
}

static int client_is_warm(uint64_t moment)
{
    return client.batch ? client.responses >= client.skipped : moment >= client.window->begin;
}

static int client_has_all(uint64_t moment)
{
    return client.batch ? client.latencies.count >= client.batch : moment >= client.window->end;
}

static void client_note(uint64_t moment, uint64_t latency, const char *head)
{
    struct window *window = client.window;
    client.responses++;
    if (client.phase == OBSERVING)
        latencies_add(&client.latencies, latency);
    if (client.phase == WARMING_UP && client_is_warm(moment)) {
        uint64_t length = window->end - window->begin;
        window_open(window);
        window->end = window->opened + length;
        client.server_cpu = -number_in(head, CPU_USED);
        client.phase = OBSERVING;
    } else if (client.phase == OBSERVING && client_has_all(moment)) {
        window_close(window);
        client.server_cpu += number_in(head, CPU_USED);
        client.phase = STOPPING;
    }
}

static void exchange_on_event(struct exchange *exchange)
{
    exchange_send(exchange);
    enum progress progress = message_receive(&exchange->response, exchange->fd);
    if (progress == WAITING)
        return;
    if (progress == CLOSED)
        die("the server ended a connection within an exchange");
    exchange_check(&exchange->response);
    if (exchange->body_sent < client.to_send)
        die("an answer before the request was complete");
    uint64_t moment = now();
    client_note(moment, moment - exchange->started, exchange->response.head);
    if (strcasestr(exchange->response.head, "\r\nConnection: close")) {
        close(exchange->fd);
        exchange_connect(exchange);
    }
    if (client.phase == STOPPING)
        client.in_flight--;
    else
        exchange_begin(exchange);
}

static void client_wait(int milliseconds)
{
    struct epoll_event events[EVENTS_AT_ONCE];
    int count = epoll_wait(client.poll, events, EVENTS_AT_ONCE, milliseconds);
    for (int i = 0; i < count; i++)
        exchange_on_event(events[i].data.ptr);
}

static void client_measure(struct window *window)
{
    client.window = window;
    client.phase = WARMING_UP;
    client.latencies.count = 0;
    client.responses = 0;
    client.in_flight = client.connections;
    for (int i = 0; i < client.connections; i++)
        exchange_begin(&client.exchanges[i]);
    while (client.phase != STOPPING)
        client_wait(-1);
    uint64_t deadline = now() + LONGEST_DRAIN;
    while (client.in_flight > 0) {
        if (now() > deadline)
            die("%d answers of %d never came", client.in_flight, client.connections);
        client_wait(100);
    }
}

static void client_make_body(size_t size)
{
    static char block[1 << 20];
    client.body = memfd_create("body", MFD_CLOEXEC);
    for (size_t written = 0; written < size;) {
        size_t left = size - written;
        ssize_t count = write(client.body, block, left < sizeof block ? left : sizeof block);
        if (count < 0)
            die_of_errno("a body in memory");
        written += (size_t)count;
    }
    client.to_send = (off_t)size;
}

static void client_make_request(const char *method, const char *path)
{
    char field[64] = "";
    if (client.to_send)
        snprintf(field, sizeof field, "Content-Length: %lld\r\n", (long long)client.to_send);
    client.request_length = (size_t)snprintf(client.request, sizeof client.request,
                                             "%s %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n", method, path, field);
    if (client.request_length >= sizeof client.request)
        die("a path as long as that");
}

static struct window client_command(char *line)
{
    struct window window = {0};
    char *rest = line;
    client.batch = 0;
    if (strncmp(line, "batch ", 6) != 0)
        return window_from_command(line);
    strsep(&rest, " ");
    client.skipped = strtoul(rest, &rest, 10);
    client.batch = strtoul(rest, &rest, 10);
    if (client.skipped == 0 || client.batch == 0)
        die("a batch of nothing, or with nothing before it");
    return window;
}

static void run_client(int is_post, char **words)
{
    char line[LINE_LENGTH];
    size_t size = (size_t)atoll(words[2]);
    client.server = address_from(words[0]);
    client.connections = atoi(words[3]);
    client.to_receive = is_post ? -1 : (long long)size;
    if (is_post)
        client_make_body(size);
    client_make_request(is_post ? "POST" : "GET", words[1]);
    client.poll = epoll_create1(EPOLL_CLOEXEC);
    client.exchanges = calloc((size_t)client.connections, sizeof *client.exchanges);
    for (int i = 0; i < client.connections; i++)
        exchange_connect(&client.exchanges[i]);
    puts("ready");
    while (fgets(line, sizeof line, stdin)) {
        struct window window = client_command(line);
        client_measure(&window);
        window_print(&window);
        if (client.batch)
            printf(", \"server_cpu\": %.9f", (double)client.server_cpu / 1e9);
        latencies_print(&client.latencies);
    }
}

int main(int argc, char **argv)
{
    prepare_process();
    signal(SIGPIPE, SIG_IGN); /* sendfile has no MSG_NOSIGNAL */
    const char *role = argc > 1 ? argv[1] : "";
    if (argc == 2 && strcmp(role, "sink") == 0)
        run_sink();
    else if (argc == 6 && strcmp(role, "get") == 0)
        run_client(0, argv + 2);
    else if (argc == 6 && strcmp(role, "post") == 0)
        run_client(1, argv + 2);
    else
        die("usage: http_peer sink | (get | post) ADDRESS PATH SIZE CONNECTIONS");
    return 0;
}
