/* The load: keeps a number of NOTIFY frames in flight on each of some connections.
 *
 *     load HOST PORT CONNECTIONS DEPTH COUNT small|web|MESSAGE [RATE]
 *
 * Prints how many frames were answered, in how many seconds, at what rate, how many ACKs were
 * errors (for no frame in flight) and how many were bare (without the right action).
 *
 * With a rate, frames fall due so many times a second, whatever the agent does. One that finds
 * no free slot waits, and its latency counts from when it fell due. */
#include "spop.h"

#include <arpa/inet.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 1 << 18, EVENTS = 64, MAX_DEPTH = 1000, PATIENCE_MS = 30000 };

struct connection {
    int fd;
    int ready;
    size_t used;
    uint64_t in_flight[MAX_DEPTH];
    uint8_t data[BUFFER];
};

static int depth, web;
static const char *message = "check-client-ip";
static uint64_t count, sent, answered, errors, bare;
static char headers[601];
static double start = INFINITY, rate, *latencies;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static double due(uint64_t stream_id)
{
    return start + (stream_id - 1) / rate;
}

static void die(const char *what)
{
    fprintf(stderr, "load: %s (%lu of %lu frames answered)\n", what, (unsigned long)answered,
            (unsigned long)count);
    exit(1);
}

static uint8_t *put_named_text(uint8_t *p, const char *name, const char *value)
{
    p = put_text(p, name);
    *p++ = 8;
    return put_text(p, value);
}

static uint8_t *put_notify(uint8_t *out, uint64_t stream_id)
{
    uint8_t *p = begin_frame(out, NOTIFY, stream_id, 1);
    p = put_text(p, message);
    *p++ = web ? 6 : 1;
    p = put_text(p, "ip");
    *p++ = 6, *p++ = 127, *p++ = 0, *p++ = stream_id >> 8, *p++ = stream_id % 240;
    if (web) {
        p = put_text(p, "port");
        *p++ = 4;
        p = put_varint(p, 1024 + stream_id % 60000);
        p = put_named_text(p, "method", "GET");
        p = put_named_text(p, "path", "/some/path/to/a/resource");
        p = put_text(p, "ssl");
        *p++ = 0x11;
        p = put_named_text(p, "headers", headers);
    }
    return finish_frame(out, p);
}

static void send_all(int fd, const uint8_t *data, size_t length)
{
    while (length > 0) {
        ssize_t done = write(fd, data, length);
        if (done <= 0)
            die("the agent closed a connection");
        data += done, length -= done;
    }
}

static void send_hello(struct connection *c)
{
    uint8_t out[256], *p = begin_frame(out, HAPROXY_HELLO, 0, 0);
    p = put_named_text(p, "supported-versions", "2.0");
    p = put_text(p, "max-frame-size");
    *p++ = 3;
    p = put_varint(p, 16380);
    p = put_named_text(p, "capabilities", "pipelining,async");
    p = put_named_text(p, "engine-id", "benchmark");
    send_all(c->fd, out, finish_frame(out, p) - out);
}

/* Sends a new NOTIFY in each free slot, of those that are due, all in one write. */
static void fill(struct connection *c)
{
    static uint8_t out[MAX_DEPTH * 1024];
    uint8_t *p = out;
    double time = rate ? now() : 0;
    for (int slot = 0; slot < depth && sent < count && (!rate || due(sent + 1) <= time); slot++)
        if (!c->in_flight[slot])
            p = put_notify(p, c->in_flight[slot] = ++sent);
    send_all(c->fd, out, p - out);
}

static void take_ack(struct connection *c, const uint8_t *p, const uint8_t *end)
{
    uint64_t stream_id, frame_id;
    p = get_varint(get_varint(p, end, &stream_id), end, &frame_id);
    answered++;
    bare += !p || p == end || end[-1] != stream_id % 240;
    for (int slot = 0; p && stream_id && slot < depth; slot++)
        if (c->in_flight[slot] == stream_id) {
            c->in_flight[slot] = 0;
            if (rate)
                latencies[stream_id - 1] = now() - due(stream_id);
            return;
        }
    errors++;
}

static void receive(struct connection *c)
{
    ssize_t got = read(c->fd, c->data + c->used, BUFFER - c->used);
    if (got <= 0)
        die("the agent closed a connection");
    const uint8_t *p = c->data, *end = p + (c->used += got);
    while (end - p >= 4 && (size_t)(end - p) >= 4 + (size_t)get32(p)) {
        const uint8_t *frame = p + 4;
        p = frame + get32(p);
        if (frame[0] == ACK)
            take_ack(c, frame + 5, p);
        else if (frame[0] == AGENT_HELLO)
            c->ready = 1;
        else
            die("the agent sent neither HELLO nor ACK");
    }
    c->used = end - p;
    memmove(c->data, p, c->used);
    if (c->ready)
        fill(c);
}

/* Takes leave as HAProxy does: some agents log an error where a connection just ends. Some
 * don't answer, which is waited for once. */
static void leave(struct connection *c)
{
    static int silent;
    uint8_t out[64], *p = begin_frame(out, HAPROXY_DISCONNECT, 0, 0);
    struct timeval patience = {.tv_sec = 2};
    p = put_text(p, "status-code");
    *p++ = 3, *p++ = 0;
    p = put_named_text(p, "message", "normal");
    send_all(c->fd, out, finish_frame(out, p) - out);
    setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (!silent && read(c->fd, c->data, BUFFER) < 0) {
        fputs("load: the agent did not answer DISCONNECT\n", stderr);
        silent = 1;
    }
}

/* Stays on the processor where the next frame is due soon: a timer would be late. */
static int patience(void)
{
    if (!rate || sent == count)
        return PATIENCE_MS;
    double left = due(sent + 1) - now();
    return left > 1e-3 && left < PATIENCE_MS ? left * 1e3 + 1 : 0;
}

static void fill_in_turn(struct connection *all, int connections)
{
    static uint64_t turn;
    for (int tries = 0; tries < connections && sent < count && due(sent + 1) <= now(); tries++)
        fill(&all[turn++ % connections]);
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_latencies(void)
{
    qsort(latencies, count, sizeof *latencies, by_size);
    printf(", \"p50\": %.9f, \"p99\": %.9f, \"p999\": %.9f", latencies[count / 2],
           latencies[count * 99 / 100], latencies[count * 999 / 1000]);
}

int main(int argc, char **argv)
{
    if (argc != 7 && argc != 8)
        return fprintf(stderr, "usage: load HOST PORT CONNECTIONS DEPTH COUNT "
                               "small|web|MESSAGE [RATE]\n"), 2;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    int connections = atoi(argv[3]), one = 1, poller = epoll_create1(0);
    if (inet_pton(AF_INET, argv[1], &address.sin_addr) != 1)
        die("HOST is no IPv4 address");
    depth = atoi(argv[4]) < MAX_DEPTH ? atoi(argv[4]) : MAX_DEPTH;
    count = atoll(argv[5]);
    web = !strcmp(argv[6], "web");
    if (strcmp(argv[6], "small"))
        message = web ? "check-request" : argv[6];
    rate = argc == 8 ? atof(argv[7]) : 0;
    latencies = calloc(count, sizeof *latencies);
    while (strlen(headers) < 600)
        strncat(headers, "x-header: some value of a header\r\n", 600 - strlen(headers));
    struct epoll_event event = {.events = EPOLLIN}, events[EVENTS];
    int greeted = 0;
    struct connection *all = calloc(connections, sizeof *all);
    for (int i = 0; i < connections; i++) {
        struct connection *c = &all[i];
        c->fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(c->fd, (struct sockaddr *)&address, sizeof address))
            die("no connection to the agent");
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        event.data.ptr = c;
        epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event);
        send_hello(c);
    }
    if (!rate)
        start = now();
    while (answered < count) {
        int wait = patience(), ready = epoll_wait(poller, events, EVENTS, wait);
        if (ready == 0 && wait == PATIENCE_MS)
            die("no answer in 30 s");
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            greeted += !c->ready;
            receive(c);
        }
        if (greeted == connections && isinf(start))
            start = now();
        if (rate)
            fill_in_turn(all, connections);
    }
    double seconds = now() - start;
    for (int i = 0; i < connections; i++)
        leave(&all[i]);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double cpu = usage.ru_utime.tv_sec + usage.ru_stime.tv_sec +
                 (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
    printf("{\"frames\": %lu, \"seconds\": %.6f, \"rate\": %.0f, \"cpu\": %.6f, \"errors\": %lu, "
           "\"bare\": %lu",
           (unsigned long)answered, seconds, answered / seconds, cpu, (unsigned long)errors,
           (unsigned long)bare);
    if (rate)
        print_latencies();
    puts("}");
    return errors || bare;
}
