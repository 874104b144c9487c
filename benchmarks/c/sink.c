/* The yardstick: an agent in C that does what the others do, and nothing more.
 *
 *     sink PORT
 *
 * One thread, epoll, one read and one write for however many frames came. Each NOTIFY is
 * answered with sess.ip_score, the last byte of its first IPv4 argument. */
#include "spop.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <unistd.h>

enum { MAX_FRAME = 1 << 20, BUFFER = MAX_FRAME + 4, EVENTS = 64 };

struct connection {
    int fd;
    int greeted;
    size_t used;
    size_t held; /* of a payload whose last fragment has not come */
    uint8_t data[BUFFER];
    uint8_t payload[BUFFER];
};

/* Walks one argument; notes the last byte of an IPv4 address. */
static const uint8_t *walk_value(const uint8_t *p, const uint8_t *end, int *score)
{
    const uint8_t *data;
    uint64_t number;
    if (!p || p >= end)
        return NULL;
    int type = *p++ & 15;
    if (type <= 1)
        return p;
    if (type <= 5)
        return get_varint(p, end, &number);
    if (type == 6) {
        if (end - p < 4)
            return NULL;
        if (*score < 0)
            *score = p[3];
        return p + 4;
    }
    if (type == 7)
        return end - p < 16 ? NULL : p + 16;
    return type <= 9 ? get_bytes(p, end, &data, &number) : NULL;
}

static int is_text(const uint8_t *data, uint64_t length, const char *text)
{
    return length == strlen(text) && !memcmp(data, text, length);
}

/* Refuses a HELLO without a sound max-frame-size. */
static uint8_t *answer_hello(uint8_t *out, const uint8_t *p, const uint8_t *end, int *healthcheck)
{
    const uint8_t *name = p;
    uint64_t stream_id, frame_id, length = 0, max_frame = 0;
    int score = -1;
    p = get_varint(get_varint(p, end, &stream_id), end, &frame_id);
    while (p && p < end) {
        const uint8_t *value = get_bytes(p, end, &name, &length);
        p = walk_value(value, end, &score);
        if (p && is_text(name, length, "max-frame-size"))
            get_varint(value + 1, end, &max_frame);
        else if (p && is_text(name, length, "healthcheck"))
            *healthcheck = *value == 0x11;
    }
    if (!p || max_frame < 256)
        return NULL;
    uint8_t *q = begin_frame(out, AGENT_HELLO, 0, 0);
    q = put_text(q, "version");
    *q++ = 8;
    q = put_text(q, "2.0");
    q = put_text(q, "max-frame-size");
    *q++ = 3;
    q = put_varint(q, max_frame < MAX_FRAME ? max_frame : MAX_FRAME);
    q = put_text(q, "capabilities");
    *q++ = 8;
    return finish_frame(out, put_text(q, *healthcheck ? "" : "fragmentation,pipelining,async"));
}

static uint8_t *answer_notify(uint8_t *out, const uint8_t *p, const uint8_t *end)
{
    const uint8_t *data;
    uint64_t stream_id, frame_id, length;
    int score = -1;
    p = get_varint(get_varint(p, end, &stream_id), end, &frame_id);
    while (p && p < end) {
        p = get_bytes(p, end, &data, &length);
        if (!p || p >= end)
            return NULL;
        for (int args = *p++; args > 0; args--)
            p = walk_value(get_bytes(p, end, &data, &length), end, &score);
    }
    if (!p)
        return NULL;
    uint8_t *q = begin_frame(out, ACK, stream_id, frame_id);
    if (score >= 0) {
        *q++ = 1, *q++ = 3, *q++ = 1;
        q = put_text(q, "ip_score");
        *q++ = 2;
        q = put_varint(q, score);
    }
    return finish_frame(out, q);
}

/* Adds a fragment to what is held, which begins with the ids. Returns 0 where it does not fit. */
static int hold(struct connection *c, const uint8_t *p, const uint8_t *end)
{
    uint64_t id;
    if (c->held)
        p = get_varint(get_varint(p, end, &id), end, &id);
    if (!p || (size_t)(end - p) > BUFFER - c->held)
        return 0;
    memcpy(c->payload + c->held, p, end - p);
    c->held += end - p;
    return 1;
}

/* Answers a NOTIFY, or its last fragment. Returns NULL where the connection is over. */
static uint8_t *take_frame(struct connection *c, uint8_t *out, const uint8_t *frame,
                           const uint8_t *end)
{
    uint32_t flags = get32(frame + 1);
    if (frame[0] != (c->held ? UNSET : NOTIFY) || flags > FIN)
        return NULL;
    if (flags == FIN && !c->held)
        return answer_notify(out, frame + 5, end);
    if (!hold(c, frame + 5, end))
        return NULL;
    if (flags == FIN) {
        out = answer_notify(out, c->payload, c->payload + c->held);
        c->held = 0;
    }
    return out;
}

/* Returns 0 where the connection is over. */
static int serve(struct connection *c)
{
    static uint8_t out[BUFFER * 2];
    uint8_t *q = out;
    int healthcheck = 0;
    ssize_t got = read(c->fd, c->data + c->used, BUFFER - c->used);
    if (got <= 0)
        return 0;
    c->used += got;
    const uint8_t *p = c->data, *end = c->data + c->used;
    while (end - p >= 4) {
        uint32_t length = get32(p);
        if (length < 7 || length > MAX_FRAME)
            return 0;
        if ((size_t)(end - p) < 4 + (size_t)length)
            break;
        const uint8_t *frame = p + 4;
        p = frame + length;
        /* Only ACKs are sure to fit, so a connection gets one HELLO. */
        if (c->greeted)
            q = take_frame(c, q, frame, p);
        else
            q = frame[0] == HAPROXY_HELLO ? answer_hello(q, frame + 5, p, &healthcheck) : NULL;
        if (!q)
            return 0;
        c->greeted = 1;
    }
    c->used = end - p;
    memmove(c->data, p, c->used);
    return (q == out || write(c->fd, out, q - out) == q - out) && !healthcheck;
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return fprintf(stderr, "usage: sink PORT\n"), 2;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0), poller = epoll_create1(0);
    signal(SIGPIPE, SIG_IGN);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024))
        return perror("sink"), 1;
    struct epoll_event event = {.events = EPOLLIN}, events[EVENTS];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int ready = epoll_wait(poller, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            if (c == NULL) {
                c = calloc(1, sizeof *c);
                c->fd = accept(listener, NULL, NULL);
                setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                event.data.ptr = c;
                epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event);
            } else if (!serve(c)) {
                close(c->fd);
                free(c);
            }
        }
    }
}
