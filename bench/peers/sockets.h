/* Addresses and sockets for the C programs of the bench. An address is "HOST:PORT", with a numeric IPv4 host, or
 * "unix:PATH".
 */

#ifndef GSPLICE_BENCH_SOCKETS_H
#define GSPLICE_BENCH_SOCKETS_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    BACKLOG = 4096,
    DISCARD_AT_ONCE = 1 << 30, /* the kernel drops what is queued: no buffer has this size */
    COPY_AT_ONCE = 1 << 18,
};

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

struct address {
    socklen_t length;
    union {
        struct sockaddr any;
        struct sockaddr_in inet;
        struct sockaddr_un local;
    } of;
};

static inline struct address address_from(const char *text)
{
    struct address address = {.of.any.sa_family = AF_UNIX, .length = sizeof address.of.local};
    if (strncmp(text, "unix:", 5) == 0) {
        snprintf(address.of.local.sun_path, sizeof address.of.local.sun_path, "%s", text + 5);
        return address;
    }
    char host[INET_ADDRSTRLEN] = "";
    int port = -1;
    address = (struct address){.of.inet.sin_family = AF_INET, .length = sizeof address.of.inet};
    if (sscanf(text, "%15[0-9.]:%d", host, &port) != 2 || inet_pton(AF_INET, host, &address.of.inet.sin_addr) != 1)
        die("not an address: %s", text);
    address.of.inet.sin_port = htons((uint16_t)port);
    return address;
}

static inline void address_print(const struct address *address)
{
    char host[INET_ADDRSTRLEN];
    if (address->of.any.sa_family == AF_UNIX)
        printf("unix:%s", address->of.local.sun_path);
    else
        printf("%s:%d", inet_ntop(AF_INET, &address->of.inet.sin_addr, host, sizeof host),
               ntohs(address->of.inet.sin_port));
}

static inline int socket_for(const struct address *address, int flags)
{
    return socket(address->of.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
}

/* A socket that listens; "ready ADDRESS" has been said. */
static inline int listen_at(const char *text, int flags)
{
    struct address address = address_from(text);
    int fd = socket_for(&address, flags);
    if (fd < 0 || bind(fd, &address.of.any, address.length) != 0 || listen(fd, BACKLOG) != 0
        || getsockname(fd, &address.of.any, &address.length) != 0)
        die_of_errno("listen");
    fputs("ready ", stdout);
    address_print(&address);
    puts("");
    return fd;
}

/* -1, and errno, if nobody is there. */
static inline int try_to_connect(const struct address *address)
{
    int fd = socket_for(address, 0);
    if (fd >= 0 && connect(fd, &address->of.any, address->length) != 0) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

static inline int connect_to(const struct address *address)
{
    int fd = try_to_connect(address);
    if (fd < 0)
        die_of_errno("connect");
    return fd;
}

static inline int is_tcp(int fd)
{
    int domain = AF_UNSPEC;
    socklen_t length = sizeof domain;
    getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length);
    return domain == AF_INET;
}

/* A unix socket has no delay to turn off. */
static inline void set_no_delay(int fd)
{
    int on = 1;
    if (is_tcp(fd) && setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0)
        die_of_errno("TCP_NODELAY");
}

/* As recv, without the bytes. TCP drops them in the kernel; a unix socket has to copy them. */
static inline ssize_t discard(int fd, int tcp)
{
    static char nowhere[COPY_AT_ONCE];
    return tcp ? recv(fd, NULL, DISCARD_AT_ONCE, MSG_TRUNC) : recv(fd, nowhere, sizeof nowhere, 0);
}

#endif
