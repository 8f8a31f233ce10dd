/* A relay that does nothing but splice: a thread and a pipe for each direction, everything blocking.
 *
 *     ceiling LISTENER_FD BACKEND      relay each client to that address
 *     ceiling LISTENER_FD file:PATH    send each client that file, with sendfile
 *
 * It does so until it is killed. It is no product: it gives up on the first error of a connection, and a thread per
 * direction is what many idle connections cannot afford. It shows what the kernel's part of the work costs.
 */

#define _GNU_SOURCE
#include "peer.h"
#include <fcntl.h>
#include <sys/sendfile.h>

enum { PIPE_SIZE = 1 << 20 }; /* the most that an unprivileged process may ask for; less if that is refused */

struct direction {
    int from, to;
};

static struct address backend;
static const char *path; /* of the file, if it is one */

/* Invariant: the pipe is empty whenever the source is read, so a full pipe never has to be told apart. */
static void *splice_direction(void *argument)
{
    struct direction *direction = argument;
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        die_of_errno("pipe2");
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

static void *relay_connection(void *argument)
{
    int client = (int)(long)argument;
    int server = try_to_connect(&backend);
    if (server >= 0) {
        set_no_delay(client);
        set_no_delay(server);
        struct direction up = {client, server}, down = {server, client};
        pthread_t thread;
        if (pthread_create(&thread, NULL, splice_direction, &up) != 0)
            die("pthread_create");
        splice_direction(&down);
        pthread_join(thread, NULL);
        close(server);
    }
    close(client);
    return NULL;
}

static void *send_file(void *argument)
{
    int client = (int)(long)argument;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        die_of_errno(path);
    while (sendfile(client, file, NULL, 1 << 30) > 0)
        ;
    close(file);
    close(client);
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        die("usage: ceiling LISTENER_FD (BACKEND | file:PATH)");
    signal(SIGPIPE, SIG_IGN);
    int listener = atoi(argv[1]);
    if (strncmp(argv[2], "file:", 5) == 0)
        path = argv[2] + 5;
    else
        backend = address_from(argv[2]);
    for (;;) {
        int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (client < 0)
            die_of_errno("accept");
        start_thread(path ? send_file : relay_connection, (void *)(long)client);
    }
}
