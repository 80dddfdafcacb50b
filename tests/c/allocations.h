/*
 * Allocations that fail on demand, and a count of what is not given back.
 *
 * The linker sends the calls of these functions here (-Wl,--wrap, see CMakeLists.txt), those of the
 * library and of a static libzstd: that works with the sanitizers, which bring a malloc() of their
 * own.  libzstd's way to be given an allocator is no help: 1.5.4 uses what that returns unseen.
 */
#ifndef ALLOCATIONS_H
#define ALLOCATIONS_H

#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/mman.h>

#include "support.h"

static struct {
    /* What the test itself needs always succeeds, and is not counted. */
    atomic_bool on;
    /* The allocation to fail, from 1 on; and all after it. */
    unsigned at;
    bool for_ever;
    atomic_uint ncalls;
    atomic_uint nfailed;
    /* Of these, threads that did not start. */
    atomic_uint nthreads_failed;
    /* Pieces of memory, and mapped bytes, that are out. */
    atomic_long npieces;
    atomic_long nmapped;
} allocations;

static void
allocations_fail(unsigned at, bool for_ever)
{
    allocations.ncalls = allocations.nfailed = allocations.nthreads_failed = 0;
    allocations.at = at;
    allocations.for_ever = for_ever;
}

static bool
allocation_fails(void)
{
    unsigned n;

    if (!allocations.on)
        return false;
    n = atomic_fetch_add(&allocations.ncalls, 1) + 1;
    if (allocations.for_ever ? n < allocations.at : n != allocations.at)
        return false;
    atomic_fetch_add(&allocations.nfailed, 1);
    errno = ENOMEM;
    return true;
}

static void *
count_piece(void *piece)
{
    if (piece)
        atomic_fetch_add(&allocations.npieces, 1);
    return piece;
}

/* Names as the linker wants them; none is declared elsewhere. */
#define WRAPPED(type, name, ...)                                                                   \
    type __real_##name(__VA_ARGS__);                                                               \
    type __wrap_##name(__VA_ARGS__);                                                               \
    type __wrap_##name(__VA_ARGS__)

WRAPPED(void *, malloc, size_t nbytes)
{
    return allocation_fails() ? NULL : count_piece(__real_malloc(nbytes));
}

WRAPPED(void *, calloc, size_t n, size_t nbytes)
{
    return allocation_fails() ? NULL : count_piece(__real_calloc(n, nbytes));
}

WRAPPED(void *, realloc, void *piece, size_t nbytes)
{
    void *moved = allocation_fails() ? NULL : __real_realloc(piece, nbytes);

    return piece ? moved : count_piece(moved);
}

WRAPPED(char *, strdup, const char *text)
{
    return allocation_fails() ? NULL : count_piece(__real_strdup(text));
}

WRAPPED(char *, strndup, const char *text, size_t nbytes)
{
    return allocation_fails() ? NULL : count_piece(__real_strndup(text, nbytes));
}

static int
print_piece(char **text_ret, const char *format, va_list arguments)
{
    int nbytes = allocation_fails() ? -1 : vasprintf(text_ret, format, arguments);

    if (nbytes >= 0)
        count_piece(*text_ret);
    return nbytes;
}

WRAPPED(int, asprintf, char **text_ret, const char *format, ...)
{
    va_list arguments;
    int nbytes;

    va_start(arguments, format);
    nbytes = print_piece(text_ret, format, arguments);
    va_end(arguments);
    return nbytes;
}

/* What asprintf() is with _FORTIFY_SOURCE. */
WRAPPED(int, __asprintf_chk, char **text_ret, int flag, const char *format, ...)
{
    va_list arguments;
    int nbytes;

    (void)flag;
    va_start(arguments, format);
    nbytes = print_piece(text_ret, format, arguments);
    va_end(arguments);
    return nbytes;
}

WRAPPED(void, free, void *piece)
{
    if (piece)
        atomic_fetch_sub(&allocations.npieces, 1);
    __real_free(piece);
}

/* As it is called with 64-bit file offsets. */
WRAPPED(void *, mmap64, void *address, size_t nbytes, int protection, int flags, int fd, off_t at)
{
    void *map =
        allocation_fails() ? MAP_FAILED : __real_mmap64(address, nbytes, protection, flags, fd, at);

    if (map != MAP_FAILED)
        atomic_fetch_add(&allocations.nmapped, (long)nbytes);
    return map;
}

WRAPPED(int, munmap, void *map, size_t nbytes)
{
    int status = __real_munmap(map, nbytes);

    CHECK_EQ(status, 0);
    atomic_fetch_sub(&allocations.nmapped, (long)nbytes);
    return status;
}

#ifdef S3DLIO_HAVE_URING
struct io_uring;
struct iovec;

/* The kernel's memory for a ring and what is registered with it. */
WRAPPED(int, io_uring_queue_init, unsigned n, struct io_uring *ring, unsigned flags)
{
    return allocation_fails() ? -ENOMEM : __real_io_uring_queue_init(n, ring, flags);
}

WRAPPED(int, io_uring_register_buffers, struct io_uring *ring, const struct iovec *v, unsigned n)
{
    return allocation_fails() ? -ENOMEM : __real_io_uring_register_buffers(ring, v, n);
}

WRAPPED(int, io_uring_register_files, struct io_uring *ring, const int *fds, unsigned n)
{
    return allocation_fails() ? -ENOMEM : __real_io_uring_register_files(ring, fds, n);
}
#endif

/* A thread needs memory for its stack. */
int
pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *),
               void *argument)
{
    static int (*_Atomic real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "pthread_create");
    CHECK(real);
    if (allocation_fails()) {
        atomic_fetch_add(&allocations.nthreads_failed, 1);
        return EAGAIN;
    }
    return real(thread, attributes, run, argument);
}

#endif /* ALLOCATIONS_H */
