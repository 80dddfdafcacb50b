/*
 * The endpoint of S3 and Azure that costs next to nothing, so that the cost of a client shows: the
 * kernel drops what is sent, and what is asked for comes from one small buffer.  It checks no
 * signature and no checksum, and of an object it remembers the size.
 *
 * Usage: null_endpoint.  It listens on 127.0.0.1, prints the port, and ends when its input does.
 *
 * An object that nobody has stored has as many bytes as the number says in which its key ends,
 * after a '-': /bucket/object-16384.  Without such a number there is none.
 */
#define _GNU_SOURCE

#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define ETAG       "\"00112233445566778899aabbccddeeff\""
#define MODIFIED   "Thu, 01 Jan 2026 00:00:00 GMT"
#define XML        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
#define NAMESPACE  " xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\""
#define DATA_SIZE  ((size_t)64 << 10) /* stays in a cache close to the core */
#define MAX_SLICES 64
#define MAX_HEAD   ((size_t)16 << 10)
#define SLOTS      ((size_t)1 << 17)
#define UNKNOWN    UINT64_MAX

/* The byte at an offset of any object is data[offset % DATA_SIZE]. */
static unsigned char data[DATA_SIZE];

/* What is known of a key, by its hash.  Two uploads to one key at once are not told apart. */
static struct slot {
    uint64_t hash;
    uint64_t size;
    uint64_t uploading;
} slots[SLOTS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

struct connection {
    int fd;
    size_t begin, end; /* of what has been read and not yet used */
    char buffer[MAX_HEAD];
};

struct request {
    char *method, *path, *query;
    uint64_t length; /* of the body as it is sent */
    uint64_t size;   /* without the frames of aws-chunked, UNKNOWN: it has none */
    bool chunked, awaits_continue, last;
    bool azure;
    char range[64];
};

static void
fail(const char *what)
{
    perror(what);
    exit(1);
}

/* Under the lock.  NULL: no room. */
static struct slot *
find(const char *path)
{
    uint64_t hash = 0xcbf29ce484222325; /* FNV-1a */

    for (const char *p = path; *p; p++)
        hash = (hash ^ (unsigned char)*p) * 0x100000001b3;
    hash |= 1; /* 0 is a free slot */
    for (size_t i = 0; i < SLOTS; i++) {
        struct slot *slot = &slots[(hash + i) % SLOTS];

        if (slot->hash == 0)
            *slot = (struct slot){.hash = hash, .size = UNKNOWN};
        if (slot->hash == hash)
            return slot;
    }
    return NULL;
}

enum change { STORE, BEGIN_UPLOAD, ADD_PART, COMPLETE, FORGET };

static void
remember(const char *path, enum change change, uint64_t size)
{
    struct slot *slot;

    pthread_mutex_lock(&lock);
    slot = find(path);
    if (slot && change == STORE)
        slot->size = size;
    else if (slot && change == ADD_PART)
        slot->uploading += size;
    else if (slot && change == COMPLETE)
        slot->size = slot->uploading;
    else if (slot)
        slot->size = UNKNOWN;
    if (slot && change != ADD_PART)
        slot->uploading = 0; /* an upload to Azure has no beginning */
    pthread_mutex_unlock(&lock);
}

static uint64_t
size_of(const char *path)
{
    const char *dash = strrchr(path, '-');
    uint64_t size = UNKNOWN;
    struct slot *slot;
    char *end;

    pthread_mutex_lock(&lock);
    slot = find(path);
    if (slot)
        size = slot->size;
    pthread_mutex_unlock(&lock);
    if (size == UNKNOWN && dash && dash[1] >= '0' && dash[1] <= '9') {
        uint64_t number = strtoull(dash + 1, &end, 10);

        if (*end == '\0')
            size = number;
    }
    return size;
}

/* Sends the head, and so many bytes of an object from 'start' on, mostly in one call. */
static bool
send_all(int fd, const char *head, size_t head_size, uint64_t start, uint64_t count)
{
    uint64_t sent = 0, total = head_size + count;

    while (sent < total) {
        struct iovec slices[MAX_SLICES];
        struct msghdr message = {.msg_iov = slices};
        uint64_t at = sent;
        ssize_t status;

        if (at < head_size) {
            slices[message.msg_iovlen++] = (struct iovec){(char *)head + at, head_size - at};
            at = head_size;
        }
        while (at < total && message.msg_iovlen < MAX_SLICES) {
            size_t from = (start + at - head_size) % DATA_SIZE;
            size_t length = DATA_SIZE - from < total - at ? DATA_SIZE - from : total - at;

            slices[message.msg_iovlen++] = (struct iovec){data + from, length};
            at += length;
        }
        status = sendmsg(fd, &message, MSG_NOSIGNAL);
        if (status < 0 && errno != EINTR)
            return false;
        if (status > 0)
            sent += (uint64_t)status;
    }
    return true;
}

/* Status line and the headers that every answer has.  Clients take the date for the time. */
static size_t
begin_head(char *text, size_t size, const char *status)
{
    time_t now = time(NULL);
    char date[64];
    struct tm tm;

    strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", gmtime_r(&now, &tm));
    return (size_t)snprintf(text, size,
                            "HTTP/1.1 %s\r\nServer: null\r\nDate: %s\r\nx-amz-request-id: 0\r\n",
                            status, date);
}

/* A status, further headers, and a body of XML or none. */
static bool
answer(int fd, const char *status, const char *headers, const char *body)
{
    char text[2048];
    const char *type = *body ? "Content-Type: application/xml\r\n" : "";
    size_t size = begin_head(text, sizeof text, status);

    size += (size_t)snprintf(text + size, sizeof text - size, "%s%sContent-Length: %zu\r\n\r\n%s",
                             headers, type, strlen(body), body);
    return send_all(fd, text, size, 0, 0);
}

static bool
fill(struct connection *c)
{
    ssize_t count;

    if (c->begin > 0) {
        memmove(c->buffer, c->buffer + c->begin, c->end - c->begin);
        c->end -= c->begin;
        c->begin = 0;
    }
    if (c->end == sizeof c->buffer)
        return false;
    do
        count = recv(c->fd, c->buffer + c->end, sizeof c->buffer - c->end, 0);
    while (count < 0 && errno == EINTR);
    if (count <= 0)
        return false;
    c->end += (size_t)count;
    return true;
}

/* Takes what ends with 'mark' out of the buffer, puts a NUL in place of the mark. */
static char *
take_until(struct connection *c, const char *mark)
{
    for (;;) {
        char *begin = c->buffer + c->begin;
        char *end = memmem(begin, c->end - c->begin, mark, strlen(mark));

        if (end) {
            *end = '\0';
            c->begin = (size_t)(end - c->buffer) + strlen(mark);
            return begin;
        }
        if (!fill(c))
            return NULL;
    }
}

/* Drops so many bytes: the kernel frees them without a copy (MSG_TRUNC in tcp(7)). */
static bool
drop(struct connection *c, uint64_t count)
{
    size_t buffered = c->end - c->begin;

    if (buffered > count)
        buffered = count;
    c->begin += buffered;
    count -= buffered;
    while (count > 0) {
        size_t length = count < INT_MAX ? count : INT_MAX;
        ssize_t status = recv(c->fd, NULL, length, MSG_TRUNC | MSG_WAITALL);

        if (status == 0 || (status < 0 && errno != EINTR))
            return false;
        if (status > 0)
            count -= (uint64_t)status;
    }
    return true;
}

/* The chunks of RFC 9112, 7.1.  Frames of aws-chunked within them are nothing but bytes here. */
static bool
drop_chunks(struct connection *c, uint64_t *total)
{
    char *line;
    uint64_t length;

    do {
        line = take_until(c, "\r\n");
        if (!line)
            return false;
        length = strtoull(line, NULL, 16);
        *total += length;
        if (length > 0 && (!drop(c, length) || !take_until(c, "\r\n")))
            return false;
    } while (length > 0);
    do
        line = take_until(c, "\r\n"); /* trailers */
    while (line && *line);
    return line != NULL;
}

static bool
parse(char *head, struct request *r)
{
    char *rest = head, *line = strsep(&rest, "\n"), *version;

    *r = (struct request){.size = UNKNOWN};
    r->method = strsep(&line, " ");
    r->path = strsep(&line, " ");
    version = line;
    if (!r->path || !version || strncmp(version, "HTTP/1.", 7) != 0)
        return false;
    r->last = version[7] == '0';
    r->query = r->path;
    strsep(&r->query, "?");
    while ((line = strsep(&rest, "\n"))) {
        char *value = line, *name = strsep(&value, ":");

        if (!value)
            return false;
        value += strspn(value, " \t");
        value[strcspn(value, "\r")] = '\0';
        if (strcasecmp(name, "content-length") == 0)
            r->length = strtoull(value, NULL, 10);
        else if (strcasecmp(name, "x-amz-decoded-content-length") == 0)
            r->size = strtoull(value, NULL, 10);
        else if (strcasecmp(name, "transfer-encoding") == 0)
            r->chunked = strcasecmp(value, "chunked") == 0;
        else if (strcasecmp(name, "expect") == 0)
            r->awaits_continue = true;
        else if (strcasecmp(name, "connection") == 0)
            r->last |= strcasecmp(value, "close") == 0;
        else if (strcasecmp(name, "x-ms-version") == 0)
            r->azure = true;
        else if (strcasecmp(name, "range") == 0 || strcasecmp(name, "x-ms-range") == 0)
            snprintf(r->range, sizeof r->range, "%s", value);
    }
    return true;
}

static bool
asks(const struct request *r, const char *name)
{
    size_t length = strlen(name);

    for (const char *p = r->query; p; p = strchr(p, '&')) {
        p += *p == '&';
        if (strncmp(p, name, length) == 0 && (p[length] == '\0' || strchr("=&", p[length])))
            return true;
    }
    return false;
}

/* Whether the range can be had; 'count' is that of the object before. */
static bool
apply_range(const char *range, uint64_t *start, uint64_t *count)
{
    unsigned long long first = 0, last = 0, size = *count;

    if (sscanf(range, "bytes=-%llu", &last) == 1) {
        first = last < size ? size - last : 0;
        last = size - 1;
    } else {
        switch (sscanf(range, "bytes=%llu-%llu", &first, &last)) {
        case 2:
            break;
        case 1:
            last = size - 1;
            break;
        default:
            return false;
        }
    }
    if (first >= size || last < first)
        return false;
    *start = first;
    *count = (last < size - 1 ? last : size - 1) - first + 1;
    return true;
}

static bool
get(int fd, const struct request *r)
{
    bool is_head = strcmp(r->method, "HEAD") == 0;
    uint64_t size = size_of(r->path), start = 0, count = size;
    char text[1024], part[128] = "";
    size_t length;

    if (size == UNKNOWN)
        return answer(fd, "404 Not Found", "",
                      is_head ? ""
                              : XML "<Error><Code>NoSuchKey</Code><Message>none</Message></Error>");
    if (*r->range) {
        if (!apply_range(r->range, &start, &count))
            return answer(
                fd, "416 Range Not Satisfiable", "",
                is_head ? "" : XML "<Error><Code>InvalidRange</Code><Message>no</Message></Error>");
        snprintf(part, sizeof part, "Content-Range: bytes %llu-%llu/%llu\r\n",
                 (unsigned long long)start, (unsigned long long)(start + count - 1),
                 (unsigned long long)size);
    }
    length = begin_head(text, sizeof text, *part ? "206 Partial Content" : "200 OK");
    length +=
        (size_t)snprintf(text + length, sizeof text - length,
                         "Last-Modified: " MODIFIED "\r\nETag: " ETAG "\r\nAccept-Ranges: bytes\r\n"
                         "x-ms-blob-type: BlockBlob\r\n"
                         "Content-Type: application/octet-stream\r\n%sContent-Length: %llu\r\n\r\n",
                         part, (unsigned long long)count);
    return send_all(fd, text, length, start, is_head ? 0 : count);
}

/* Whether the path names an object, not only a bucket. */
static bool
has_key(const char *path)
{
    const char *slash = *path ? strchr(path + 1, '/') : NULL;

    return slash && slash[1];
}

static bool
handle_azure(int fd, const struct request *r, uint64_t body_size)
{
    if (strcmp(r->method, "HEAD") == 0 || strcmp(r->method, "GET") == 0)
        return get(fd, r);
    if (strcmp(r->method, "PUT") == 0) {
        if (asks(r, "blockid"))
            remember(r->path, ADD_PART, body_size);
        else if (asks(r, "comp"))
            remember(r->path, COMPLETE, 0);
        else if (!asks(r, "restype"))
            remember(r->path, STORE, body_size);
        return answer(fd, "201 Created", "ETag: " ETAG "\r\nLast-Modified: " MODIFIED "\r\n", "");
    }
    if (strcmp(r->method, "DELETE") == 0) {
        remember(r->path, FORGET, 0);
        return answer(fd, "202 Accepted", "", "");
    }
    return answer(fd, "501 Not Implemented", "", "");
}

static bool
handle(int fd, const struct request *r, uint64_t body_size)
{
    const char *etag = "ETag: " ETAG "\r\n";
    const char *uploads =
        XML "<InitiateMultipartUploadResult" NAMESPACE "><Bucket>b</Bucket>"
            "<Key>k</Key><UploadId>null</UploadId></InitiateMultipartUploadResult>";
    const char *complete =
        XML "<CompleteMultipartUploadResult" NAMESPACE "><Location>l</Location><Bucket>b</Bucket>"
            "<Key>k</Key><ETag>&quot;00112233445566778899aabbccddeeff&quot;</ETag>"
            "</CompleteMultipartUploadResult>";
    const char *list = XML "<ListBucketResult" NAMESPACE "><Name>b</Name><Prefix></Prefix>"
                           "<KeyCount>0</KeyCount><MaxKeys>1000</MaxKeys>"
                           "<IsTruncated>false</IsTruncated></ListBucketResult>";

    if (strcmp(r->method, "HEAD") == 0 || strcmp(r->method, "GET") == 0) {
        if (has_key(r->path))
            return get(fd, r);
        return answer(fd, "200 OK", "", *r->method == 'G' ? list : "");
    }
    if (strcmp(r->method, "PUT") == 0) {
        if (has_key(r->path))
            remember(r->path, asks(r, "partNumber") ? ADD_PART : STORE, body_size);
        return answer(fd, "200 OK", etag, "");
    }
    if (strcmp(r->method, "DELETE") == 0) {
        if (!asks(r, "uploadId"))
            remember(r->path, FORGET, 0);
        return answer(fd, "204 No Content", "", "");
    }
    if (strcmp(r->method, "POST") == 0 && asks(r, "uploads")) {
        remember(r->path, BEGIN_UPLOAD, 0);
        return answer(fd, "200 OK", "", uploads);
    }
    if (strcmp(r->method, "POST") == 0 && asks(r, "uploadId")) {
        remember(r->path, COMPLETE, 0);
        return answer(fd, "200 OK", "", complete);
    }
    if (strcmp(r->method, "POST") == 0 && asks(r, "delete"))
        return answer(fd, "200 OK", "", XML "<DeleteResult" NAMESPACE "></DeleteResult>");
    return answer(fd, "501 Not Implemented", "",
                  XML "<Error><Code>NotImplemented</Code><Message>no</Message></Error>");
}

static void *
serve(void *argument)
{
    struct connection *c = argument;
    struct request request = {.last = false};

    while (!request.last) {
        uint64_t size = 0;
        char *head = take_until(c, "\r\n\r\n");
        char copy[MAX_HEAD]; /* the buffer is filled again while a body in chunks is dropped */

        if (!head)
            break;
        if (!parse(strcpy(copy, head), &request)) {
            answer(c->fd, "400 Bad Request", "Connection: close\r\n", "");
            break;
        }
        if (request.awaits_continue && c->begin == c->end) {
            const char *go_on = "HTTP/1.1 100 Continue\r\n\r\n";

            if (!send_all(c->fd, go_on, strlen(go_on), 0, 0))
                break;
        }
        if (request.chunked ? !drop_chunks(c, &size) : !drop(c, size = request.length))
            break;
        if (request.size != UNKNOWN)
            size = request.size;
        if (!(request.azure ? handle_azure : handle)(c->fd, &request, size))
            break;
    }
    close(c->fd);
    free(c);
    return NULL;
}

static void *
end_with_input(void *unused)
{
    char byte;

    (void)unused;
    while (read(0, &byte, 1) > 0)
        ;
    exit(0);
}

static void
start_thread(void *(*run)(void *), void *argument)
{
    pthread_attr_t attributes;
    pthread_t thread;

    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, (size_t)256 << 10);
    errno = pthread_create(&thread, &attributes, run, argument);
    if (errno != 0)
        fail("pthread_create");
    pthread_attr_destroy(&attributes);
}

int
main(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), yes = 1;
    uint32_t state = 1;

    for (size_t i = 0; i < DATA_SIZE; i++) {
        state = state * 1664525 + 1013904223; /* any generator will do */
        data[i] = (unsigned char)(state >> 24);
    }
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, length) < 0 ||
        listen(listener, 1024) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &length) < 0)
        fail("listen");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    start_thread(end_with_input, NULL);
    for (;;) {
        struct connection *c;
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

        if (fd < 0 && (errno == EINTR || errno == ECONNABORTED))
            continue;
        if (fd < 0)
            fail("accept");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        c = malloc(sizeof *c);
        if (!c)
            fail("malloc");
        c->fd = fd;
        c->begin = c->end = 0;
        start_thread(serve, c);
    }
}
