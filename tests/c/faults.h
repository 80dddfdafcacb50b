/*
 * Calls that fail on demand.  FAULTY() defines a function of the C library or of liburing anew, and
 * the definition in a program takes the place of that in the library:
 *
 *     FAULTY(int, flock, (int fd, int operation), (fd, operation))
 *     fail(&flock_fault, ENOLCK, 1);
 *
 * makes the next call of flock() return -1 with that error, and lets all others through.
 */
#ifndef FAULTS_H
#define FAULTS_H

#include <dlfcn.h>
#include <stdarg.h>
#include <stdatomic.h>

#include "support.h"

struct fault {
    int error;
    /* Calls to let through before, and then to fail. */
    atomic_int skip, times;
    /* Calls that failed. */
    atomic_int nfired;
};

HELPER void
fail_after(struct fault *fault, int skip, int error, int times)
{
    fault->error = error;
    fault->nfired = 0;
    fault->skip = skip;
    fault->times = times;
}

HELPER void
fail(struct fault *fault, int error, int times)
{
    fail_after(fault, 0, error, times);
}

/* Ends it, and sees that it was there. */
HELPER void
check_fired(struct fault *fault)
{
    fault->times = 0;
    CHECK(fault->nfired > 0);
}

HELPER bool
fires(struct fault *fault)
{
    if (fault->times == 0)
        return false;
    if (fault->skip > 0) {
        fault->skip--;
        return false;
    }
    fault->times--;
    fault->nfired++;
    errno = fault->error;
    return true;
}

HELPER void *
find_next(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);

    CHECK(found);
    return found;
}

/* Calls the definition that the program would have had; 'fault->error' can be used as it is. */
#define FAULTY_RETURNING(failure, type, name, parameters, arguments)                               \
    static struct fault name##_fault;                                                              \
                                                                                                   \
    type name parameters                                                                           \
    {                                                                                              \
        static type(*_Atomic real) parameters;                                                     \
                                                                                                   \
        if (fires(&name##_fault))                                                                  \
            return failure;                                                                        \
        if (!real)                                                                                 \
            *(void **)&real = find_next(#name);                                                    \
        return real arguments;                                                                     \
    }

#define FAULTY(type, name, parameters, arguments)                                                  \
    FAULTY_RETURNING(-1, type, name, parameters, arguments)

/* The same for fcntl(), whose third argument may be missing: then what is read here is not used. */
#define FAULTY_FCNTL()                                                                             \
    static struct fault fcntl_fault;                                                               \
                                                                                                   \
    int fcntl(int fd, int command, ...)                                                            \
    {                                                                                              \
        va_list rest;                                                                              \
        long argument;                                                                             \
                                                                                                   \
        va_start(rest, command);                                                                   \
        argument = va_arg(rest, long);                                                             \
        va_end(rest);                                                                              \
        return fires(&fcntl_fault) ? -1 : (int)syscall(SYS_fcntl, fd, command, argument);          \
    }

#endif /* FAULTS_H */
