/* What the benchmark's agent and load generator share of the protocol. */
#ifndef SPOP_H
#define SPOP_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { UNSET = 0, HAPROXY_HELLO = 1, HAPROXY_DISCONNECT = 2, NOTIFY = 3, AGENT_HELLO = 101, ACK = 103 };
enum { FIN = 1 };

static inline uint32_t get32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3];
}

static inline void put32(uint8_t *p, uint32_t v)
{
    p[0] = v >> 24, p[1] = v >> 16, p[2] = v >> 8, p[3] = v;
}

static inline uint8_t *put_varint(uint8_t *p, uint64_t v)
{
    if (v < 240) {
        *p++ = v;
        return p;
    }
    *p++ = v | 0xF0;
    for (v = (v - 240) >> 4; v >= 128; v = (v - 128) >> 7)
        *p++ = v | 0x80;
    *p++ = v;
    return p;
}

/* Returns what follows, or NULL where the varint is cut short. */
static inline const uint8_t *get_varint(const uint8_t *p, const uint8_t *end, uint64_t *v)
{
    if (!p || p >= end)
        return NULL;
    *v = *p++;
    if (*v < 240)
        return p;
    for (int shift = 4; p < end && shift < 64; shift += 7) {
        *v += (uint64_t)*p << shift;
        if (*p++ < 128)
            return p;
    }
    return NULL;
}

static inline uint8_t *put_bytes(uint8_t *p, const void *data, size_t length)
{
    p = put_varint(p, length);
    memcpy(p, data, length);
    return p + length;
}

static inline uint8_t *put_text(uint8_t *p, const char *text)
{
    return put_bytes(p, text, strlen(text));
}

static inline const uint8_t *get_bytes(const uint8_t *p, const uint8_t *end, const uint8_t **data,
                                       uint64_t *length)
{
    p = get_varint(p, end, length);
    if (!p || *length > (uint64_t)(end - p))
        return NULL;
    *data = p;
    return p + *length;
}

/* Leaves room for the length; finish_frame() fills it in. */
static inline uint8_t *begin_frame(uint8_t *p, int type, uint64_t stream_id, uint64_t frame_id)
{
    p += 4;
    *p++ = type;
    put32(p, 1);
    return put_varint(put_varint(p + 4, stream_id), frame_id);
}

static inline uint8_t *finish_frame(uint8_t *start, uint8_t *end)
{
    put32(start, end - start - 4);
    return end;
}

#endif
