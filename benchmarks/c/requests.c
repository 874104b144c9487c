/* Clients of HAProxy: each asks, waits for the answer and asks again.
 *
 *     requests PORT CLIENTS COUNT
 *
 * Prints the rate, the quantiles of the latency in seconds, and how many answers lacked a score. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 64, PATIENCE_MS = 30000 };

static const char request[] = "GET / HTTP/1.1\r\nHost: benchmark\r\n\r\n";

struct client {
    int fd;
    double began;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void die(const char *what)
{
    fprintf(stderr, "requests: %s\n", what);
    exit(1);
}

static void ask(struct client *c)
{
    c->began = now();
    if (write(c->fd, request, sizeof request - 1) != sizeof request - 1)
        die("HAProxy closed a connection");
}

/* Returns whether the answer has a score. It has no body, and comes in one piece. */
static int hear(struct client *c)
{
    char data[4096];
    ssize_t got = read(c->fd, data, sizeof data - 1);
    if (got <= 0)
        die("HAProxy closed a connection");
    data[got] = 0;
    if (got < 4 || strcmp(data + got - 4, "\r\n\r\n") || strncmp(data, "HTTP/1.1 200", 12))
        die("no whole answer of 200");
    const char *score = strcasestr(data, "x-score: ");
    return score && score[9] != '\r';
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return fprintf(stderr, "usage: requests PORT CLIENTS COUNT\n"), 2;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    int clients = atoi(argv[2]), one = 1, poller = epoll_create1(0);
    size_t count = atoll(argv[3]), sent = 0, answered = 0, bare = 0;
    struct client *all = calloc(clients, sizeof *all);
    double *latencies = calloc(count, sizeof *latencies), start = now();
    struct epoll_event event = {.events = EPOLLIN}, events[EVENTS];
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int i = 0; i < clients && sent < count; i++, sent++) {
        all[i].fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(all[i].fd, (struct sockaddr *)&address, sizeof address))
            die("no connection to HAProxy");
        setsockopt(all[i].fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        event.data.ptr = &all[i];
        epoll_ctl(poller, EPOLL_CTL_ADD, all[i].fd, &event);
        ask(&all[i]);
    }
    while (answered < count) {
        int ready = epoll_wait(poller, events, EVENTS, PATIENCE_MS);
        if (ready == 0)
            die("no answer in 30 s");
        for (int i = 0; i < ready; i++) {
            struct client *c = events[i].data.ptr;
            bare += !hear(c);
            latencies[answered++] = now() - c->began;
            if (sent < count && ++sent)
                ask(c);
        }
    }
    double seconds = now() - start;
    qsort(latencies, count, sizeof *latencies, by_size);
    printf("{\"rate\": %.0f, \"bare\": %zu, \"p50\": %.9f, \"p99\": %.9f, \"p999\": %.9f}\n",
           count / seconds, bare, latencies[count / 2], latencies[count * 99 / 100],
           latencies[count * 999 / 1000]);
    return bare > count / 1000;
}
