/* The door of every handle: one thread at a time, and no child of fork(2). */
#include "handle.h"

#include <pthread.h>

#include "s3dlio/status.h"
#include "support.h"

static struct s3dlio_handle handle;

static void
one_thread_enters_at_a_time(void)
{
    s3dlio_handle_init(&handle);
    CHECK_EQ(s3dlio_handle_enter(&handle), 0);
    CHECK_EQ(s3dlio_handle_enter(&handle), S3DLIO_E_BUSY);
    CHECK_EQ(s3dlio_handle_enter(&handle), S3DLIO_E_BUSY);
    s3dlio_handle_leave(&handle);
    CHECK_EQ(s3dlio_handle_enter(&handle), 0);
    s3dlio_handle_leave(&handle);
}

/* What one thread did inside is seen by the next; ThreadSanitizer looks on. */

static long inside;

static void *
count_inside(void *argument)
{
    long *nbusy = argument;

    for (int n = 0; n < 5000;) {
        if (s3dlio_handle_enter(&handle) == 0) {
            inside++;
            n++;
            s3dlio_handle_leave(&handle);
        } else {
            ++*nbusy;
        }
    }
    return NULL;
}

static void
threads_exclude_each_other(void)
{
    pthread_t threads[3];
    long nbusy[3] = {0};

    s3dlio_handle_init(&handle);
    inside = 0;
    for (int i = 0; i < 3; i++)
        CHECK(pthread_create(&threads[i], NULL, count_inside, &nbusy[i]) == 0);
    for (int i = 0; i < 3; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK_EQ(inside, 3 * 5000);
}

static void
check_forked(void *argument)
{
    (void)argument;
    CHECK(s3dlio_handle_is_forked(&handle));
    CHECK_EQ(s3dlio_handle_enter(&handle), S3DLIO_E_FORKED);
}

static void
use_in_child(void *argument)
{
    struct s3dlio_handle own;

    check_forked(argument);
    s3dlio_handle_init(&own); /* what the child makes is the child's */
    CHECK_EQ(s3dlio_handle_enter(&own), 0);
    s3dlio_handle_leave(&own);
    CHECK(!s3dlio_handle_is_forked(&own));

    handle = own;
    in_child(check_forked, NULL); /* and not its child's */
    CHECK_EQ(s3dlio_handle_enter(&handle), 0);
}

static void
child_of_fork_is_kept_out_and_the_parent_is_not(void)
{
    s3dlio_handle_init(&handle);
    in_child(use_in_child, NULL);
    CHECK(!s3dlio_handle_is_forked(&handle));
    CHECK_EQ(s3dlio_handle_enter(&handle), 0);
    in_child(check_forked, NULL); /* also while the parent is inside */
    s3dlio_handle_leave(&handle);
}

int
main(void)
{
    deadline(60);
    one_thread_enters_at_a_time();
    threads_exclude_each_other();
    child_of_fork_is_kept_out_and_the_parent_is_not();
    return 0;
}
