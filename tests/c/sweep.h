/*
 * The sweep: a scenario is run again and again, with another allocation failing each time, until
 * there is none left to fail.  What it must not leave is looked for after each run.
 */
#ifndef SWEEP_H
#define SWEEP_H

#include "allocations.h"
#include "s3dlio/direct.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/lsan_interface.h>
#define SEES_LOST_MEMORY 1
#define lost_memory()    __lsan_do_recoverable_leak_check()
#else
#define SEES_LOST_MEMORY 0
#define lost_memory()    0
#endif

#define BLOCK  (64 * KIB)
#define NBYTES (3 * BLOCK + 100)

/* Empty at the beginning of each run. */
static char folder[PATH_MAX];
/* NBYTES of it, which do not compress. */
static unsigned char *data;

/* What the children that run the scenarios have seen; shared with the test. */
static struct report {
    unsigned nfailed[2]; /* allocations: once, and for ever */
    unsigned ncrashes;
    unsigned nleaks;
    unsigned nwrong; /* codes, bytes and names */
} *report;

enum place { NEW, REPLACED, FOLDERS, LINKED, HIDDEN, FAILING, NPLACES };

struct scenario {
    void (*run)(const struct scenario *scenario);
    int (*write)(const struct scenario *scenario, const char *path);
    const char *engine;
    enum s3dlio_direct direct;
    int level, workers;
    enum place place;
    bool empty; /* instead of NBYTES */
};

static void
expect(bool good, const char *what)
{
    if (good)
        return;
    report->nwrong++;
    fprintf(stderr, "allocation %u failed%s: %s\n", allocations.at,
            allocations.for_ever ? " for ever" : "", what);
}

/* A thread that does not start is EAGAIN, which writer and reader turn into EBUSY. */
static void
expect_shortage_unless(bool good, int64_t status)
{
    expect(good || status == -ENOMEM || (status == -EBUSY && allocations.nthreads_failed > 0),
           "the code is wrong");
}

static int
remove_below(const char *path, const struct stat *file, int kind, struct FTW *where)
{
    return where->level > 0 ? remove_entry(path, file, kind, where) : 0;
}

static void
empty_folder(void)
{
    CHECK(nftw(folder, remove_below, 16, FTW_DEPTH | FTW_PHYS) == 0);
}

/* Fails allocation number 'at'.  Returns whether there was one. */
static bool
run_once(const struct scenario *scenario, unsigned at, bool for_ever)
{
    long npieces = allocations.npieces, nmapped = allocations.nmapped;
    int nfds = count_fds();

    allocations_fail(at, for_ever);
    scenario->run(scenario);
    if (allocations.npieces != npieces || allocations.nmapped != nmapped || count_fds() != nfds ||
        lost_memory()) {
        report->nleaks++;
        fprintf(stderr, "allocation %u failed%s: %ld pieces, %ld bytes, %d descriptors leak\n", at,
                for_ever ? " for ever" : "", allocations.npieces - npieces,
                allocations.nmapped - nmapped, count_fds() - nfds);
    }
    empty_folder();
    if (allocations.nfailed == 0)
        return false;
    report->nfailed[for_ever]++;
    return true;
}

static void
sweep(void *argument)
{
    const struct scenario *scenario = argument;

    force_engine(scenario->engine);
    for (int for_ever = 0; for_ever < 2; for_ever++) {
        for (unsigned at = 1; run_once(scenario, at, for_ever);)
            at++;
    }
}

static void
run_scenario(const struct scenario *scenario)
{
    int status;
    pid_t child = start_child(sweep, (void *)scenario);

    CHECK(waitpid(child, &status, 0) == child);
    if (status == 0)
        return;
    report->ncrashes++;
    empty_folder();
    fprintf(stderr, "crashed: engine %s, direct %d, level %d, workers %d, place %d\n",
            scenario->engine, scenario->direct, scenario->level, scenario->workers,
            scenario->place);
}

/* Runs it without its complaints.  Returns what the report came to, with the report as before. */
static struct report
plant(struct scenario scenario)
{
    struct report before = *report, seen;
    int stderr_fd = dup(STDERR_FILENO), null = open("/dev/null", O_WRONLY | O_CLOEXEC);

    CHECK(null >= 0 && dup2(null, STDERR_FILENO) >= 0);
    close(null);
    memset(report, 0, sizeof *report);
    run_scenario(&scenario);
    CHECK(dup2(stderr_fd, STDERR_FILENO) >= 0);
    close(stderr_fd);
    seen = *report;
    *report = before;
    return seen;
}

#endif /* SWEEP_H */
