#include "handle.h"

#include <pthread.h>

#include "s3dlio/status.h"

/* Counts the forks between the first process and this one.  Reading it costs nothing, where
 * getpid(2) is a system call for each small write. */
static atomic_uint generation;

static void
count_fork(void)
{
    atomic_fetch_add_explicit(&generation, 1, memory_order_relaxed);
}

static void
watch_forks(void)
{
    (void)pthread_atfork(NULL, NULL, count_fork);
}

void
s3dlio_handle_init(struct s3dlio_handle *handle)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    (void)pthread_once(&once, watch_forks);
    atomic_init(&handle->busy, false);
    handle->generation = atomic_load_explicit(&generation, memory_order_relaxed);
}

bool
s3dlio_handle_is_forked(const struct s3dlio_handle *handle)
{
    return handle->generation != atomic_load_explicit(&generation, memory_order_relaxed);
}

int
s3dlio_handle_enter(struct s3dlio_handle *handle)
{
    if (s3dlio_handle_is_forked(handle))
        return S3DLIO_E_FORKED;
    if (atomic_exchange_explicit(&handle->busy, true, memory_order_acquire))
        return S3DLIO_E_BUSY;
    return 0;
}

void
s3dlio_handle_leave(struct s3dlio_handle *handle)
{
    atomic_store_explicit(&handle->busy, false, memory_order_release);
}
