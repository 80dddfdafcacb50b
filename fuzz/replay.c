/*
 * Runs a fuzz target over every file of the folders named on its command line, as an ordinary test:
 * what was found once stays found, with every compiler and sanitizer.
 */
#include "fuzz.h"

static int
no_dots(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

static int
replay_folder(const char *folder)
{
    struct dirent **entries;
    int n = scandir(folder, &entries, no_dots, alphasort);

    CHECK(n >= 0);
    for (int i = 0; i < n; i++) {
        char path[PATH_MAX];
        size_t nbytes;
        unsigned char *file = get_file(join(path, folder, entries[i]->d_name), &nbytes);
        void *data = copy_of(file, nbytes);

        free(file);
        free(entries[i]);
        printf("%s\n", path); /* shown if the next one fails */
        fflush(stdout);
        CHECK_EQ(LLVMFuzzerTestOneInput(data, nbytes), 0);
        free(data);
    }
    free(entries);
    return n;
}

int
main(int argc, char **argv)
{
    int n = 0;

    deadline(250);
    for (int i = 1; i < argc; i++)
        n += replay_folder(argv[i]);
    CHECK(n > 0);
    return 0;
}
