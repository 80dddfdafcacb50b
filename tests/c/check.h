/*
 * What every C test uses: a program that returns 0, or says where it failed and returns 1.
 * Exit code 77 means skipped; CTest lists it, with the reason that was printed.
 */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s: failed: %s\n", __FILE__, __LINE__, __func__, #condition);  \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* Compares two integers and prints both when they differ. */
#define CHECK_EQ(actual, expected)                                                                 \
    do {                                                                                           \
        long long check_actual = (long long)(actual);                                              \
        long long check_expected = (long long)(expected);                                          \
        if (check_actual != check_expected) {                                                      \
            fprintf(stderr, "%s:%d: %s: %s is %lld, not %lld\n", __FILE__, __LINE__, __func__,     \
                    #actual, check_actual, check_expected);                                        \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

#define SKIP(reason)                                                                               \
    do {                                                                                           \
        printf("SKIPPED: %s\n", reason);                                                           \
        exit(77);                                                                                  \
    } while (0)

#endif /* CHECK_H */
