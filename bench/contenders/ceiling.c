/* A relay that does nothing but splice: a thread and a pipe for each direction, everything blocking.
 *
 *     ceiling BACKEND_PORT
 *
 * It says "ready PORT" and relays until it is killed. It is no product: it gives up on the first error of a
 * connection, and a thread per direction is what many idle connections cannot afford. It shows what the
 * kernel's part of the work costs.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    BACKLOG = 4096,
    PIPE_SIZE = 1 << 20, /* the most that an unprivileged process may ask for; less if that is refused */
};

struct direction {
    int from, to;
};

static struct sockaddr_in backend;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* Invariant: the pipe is empty whenever the source is read, so a full pipe never has to be told apart. */
static void *splice_direction(void *argument)
{
    struct direction *direction = argument;
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        die("pipe2");
    fcntl(ends[1], F_SETPIPE_SZ, PIPE_SIZE);
    for (;;) {
        ssize_t held = splice(direction->from, NULL, ends[1], NULL, PIPE_SIZE, SPLICE_F_MOVE);
        if (held <= 0)
            break;
        while (held > 0) {
            ssize_t moved = splice(ends[0], NULL, direction->to, NULL, (size_t)held, SPLICE_F_MOVE);
            if (moved <= 0)
                goto over;
            held -= moved;
        }
    }
over:
    shutdown(direction->to, SHUT_WR);
    close(ends[0]);
    close(ends[1]);
    return NULL;
}

static void set_no_delay(int fd)
{
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static void *relay_connection(void *argument)
{
    int client = (int)(long)argument;
    int server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (server >= 0 && connect(server, (struct sockaddr *)&backend, sizeof backend) == 0) {
        set_no_delay(client);
        set_no_delay(server);
        struct direction up = {client, server}, down = {server, client};
        pthread_t thread;
        if (pthread_create(&thread, NULL, splice_direction, &up) != 0)
            die("pthread_create");
        splice_direction(&down);
        pthread_join(thread, NULL);
    }
    close(server);
    close(client);
    return NULL;
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    backend = (struct sockaddr_in){
        .sin_family = AF_INET,
        .sin_port = htons((unsigned short)(argc > 1 ? atoi(argv[1]) : 0)),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, length) != 0
        || listen(listener, BACKLOG) != 0 || getsockname(listener, (struct sockaddr *)&address, &length) != 0)
        die("listen");
    printf("ready %d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        pthread_t thread;
        if (client < 0)
            die("accept");
        if (pthread_create(&thread, NULL, relay_connection, (void *)(long)client) != 0)
            die("pthread_create");
        pthread_detach(thread);
    }
}
