/* Bookkeeping of the pretended card: addresses are handed out, nothing lies behind them. */
#define _GNU_SOURCE
#include "books.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- the card ---- */

static const char *told(const char *name) {
    const char *value = getenv(name);
    if (!value || !*value) {
        fprintf(stderr, "rehearsal: %s is not set\n", name);
        _exit(2);
    }
    return value;
}

static struct card the_card;

static void read_card(void) {
    the_card.product = told("REHEARSED_PRODUCT");
    sscanf(told("REHEARSED_CAPABILITY"), "%d.%d", &the_card.major, &the_card.minor);
    the_card.multiprocessors = atoi(told("REHEARSED_MULTIPROCESSORS"));
    the_card.total_bytes = strtoull(told("REHEARSED_TOTAL_BYTES"), NULL, 10);
    the_card.context_bytes = strtoull(told("REHEARSED_CONTEXT_BYTES"), NULL, 10);
}

const struct card *card(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, read_card);
    return &the_card;
}

/* ---- who holds which addresses ---- */

struct block {
    char *address;
    size_t bytes;
    struct block *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct block *on_device, *on_host;
static size_t taken_bytes;

/* The device's addresses: reserved from the kernel without access, so that no host object can lie there
 * and a host access to "device memory" is a fault instead of nonsense. Never used twice. */
static const size_t ADDRESS_SPACE = (size_t)16 << 40;
static char *space_begin, *space_next;

static size_t rounded(size_t bytes) { return (bytes + GRANULARITY - 1) / GRANULARITY * GRANULARITY; }

static char *next_addresses(size_t bytes) {
    if (!space_begin) {
        char *base = mmap(NULL, ADDRESS_SPACE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (base == MAP_FAILED) {
            perror("rehearsal: no address space");
            _exit(2);
        }
        space_begin = base;
        space_next = (char *)rounded((size_t)base);
    }
    char *address = space_next;
    space_next += rounded(bytes);
    return space_next > space_begin + ADDRESS_SPACE ? NULL : address;
}

static void note(struct block **books, char *address, size_t bytes) {
    struct block *entry = malloc(sizeof *entry);
    *entry = (struct block){address, bytes, *books};
    *books = entry;
}

static size_t strike_out(struct block **books, const char *address) {
    for (struct block **at = books; *at; at = &(*at)->next)
        if ((*at)->address == address) {
            struct block *entry = *at;
            size_t bytes = entry->bytes;
            *at = entry->next;
            free(entry);
            return bytes;
        }
    return 0;
}

static bool fits(size_t bytes) {
    return taken_bytes + bytes + card()->context_bytes <= card()->total_bytes;
}

/* ---- device memory ---- */

void *take_device(size_t bytes) {
    char *address = NULL;
    bytes = rounded(bytes);
    pthread_mutex_lock(&lock);
    if (fits(bytes) && (address = next_addresses(bytes))) {
        note(&on_device, address, bytes);
        taken_bytes += bytes;
    }
    pthread_mutex_unlock(&lock);
    return address;
}

bool return_device(void *address) {
    pthread_mutex_lock(&lock);
    size_t bytes = strike_out(&on_device, address);
    taken_bytes -= bytes;
    pthread_mutex_unlock(&lock);
    return bytes != 0;
}

void *reserve_addresses(size_t bytes) {
    pthread_mutex_lock(&lock);
    char *address = next_addresses(bytes);
    pthread_mutex_unlock(&lock);
    return address;
}

bool take_physical(size_t bytes) {
    pthread_mutex_lock(&lock);
    bool there = fits(bytes);
    taken_bytes += there ? bytes : 0;
    pthread_mutex_unlock(&lock);
    return there;
}

void return_physical(size_t bytes) {
    pthread_mutex_lock(&lock);
    taken_bytes -= bytes;
    pthread_mutex_unlock(&lock);
}

bool is_device(const void *address) {
    return space_begin && (char *)address >= space_begin && (char *)address < space_begin + ADDRESS_SPACE;
}

size_t free_bytes(void) { return card()->total_bytes - card()->context_bytes - taken_bytes; }

/* ---- pinned host memory: real memory, because the host reads it ---- */

void *take_host(size_t bytes) {
    void *address = NULL;
    if (posix_memalign(&address, 4096, bytes ? bytes : 1)) return NULL;
    memset(address, 0, bytes);
    pthread_mutex_lock(&lock);
    note(&on_host, address, bytes);
    pthread_mutex_unlock(&lock);
    return address;
}

void return_host(void *address) {
    pthread_mutex_lock(&lock);
    bool ours = strike_out(&on_host, address) != 0;
    pthread_mutex_unlock(&lock);
    if (ours) free(address);
}

bool is_pinned(const void *address) {
    bool found = false;
    pthread_mutex_lock(&lock);
    for (struct block *at = on_host; at && !found; at = at->next)
        found = (char *)address >= at->address && (char *)address < at->address + at->bytes;
    pthread_mutex_unlock(&lock);
    return found;
}

/* ---- what the host reads of the device ---- */

static size_t reads;

/* No kernel ran, so there is nothing to read: numbers read as 0. A single byte is a bool that a Python
 * program asked for by .item(), and reads as true: "all of these are fine" is what such questions ask. */
void read_back(void *host, size_t bytes) {
    __atomic_add_fetch(&reads, 1, __ATOMIC_RELAXED);
    if (getenv("REHEARSED_TELL_READS")) fprintf(stderr, "rehearsal: the host reads %zu bytes\n", bytes);
    memset(host, bytes == 1, bytes);
}

/* How often the host asked the device for a value that no kernel had computed. */
size_t rehearsal_reads(void) { return reads; }
