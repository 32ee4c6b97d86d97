/* What the rehearsal knows of the pretended GPU: its facts, and which addresses are taken. */
#pragma once
#include <stdbool.h>
#include <stddef.h>

struct card {
    const char *product;
    int major, minor, multiprocessors;
    size_t total_bytes, context_bytes; /* the second is taken before the first cudaMalloc */
};

/* The card that the environment describes: REHEARSED_PRODUCT, _CAPABILITY (as 9.0), _MULTIPROCESSORS, _TOTAL_BYTES,
 * _CONTEXT_BYTES. Ends the process if one of them is missing, because no default would be honest. */
const struct card *card(void);

#define GRANULARITY ((size_t)2 << 20) /* what the driver maps at once */

void *take_device(size_t bytes);    /* a fresh device address, or NULL where the card is full */
bool return_device(void *address);  /* false where the address was never given out */
void *reserve_addresses(size_t bytes);            /* addresses without memory behind them */
bool take_physical(size_t bytes);                 /* memory without an address (cuMemCreate) */
void return_physical(size_t bytes);
bool is_device(const void *address);
size_t free_bytes(void);

void *take_host(size_t bytes); /* pinned host memory */
void return_host(void *address);
bool is_pinned(const void *address);

void read_back(void *host, size_t bytes); /* what the host sees of the device: see books.c */
int attribute(int which);                 /* of the device; the runtime's and the driver's numbers are the same */
