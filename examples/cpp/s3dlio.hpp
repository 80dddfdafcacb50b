/*
 * The C handles as C++ objects: what was opened is freed, what was not closed is dropped, and a
 * negative code becomes an exception.  To be copied and changed.
 */
#ifndef S3DLIO_HPP
#define S3DLIO_HPP

#include <cerrno>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#include <s3dlio/s3dlio.h>

namespace s3dlio
{

class error : public std::runtime_error
{
  public:
    error(const std::string &what, int status)
        : std::runtime_error(what + ": " + text(status)), code(status)
    {
    }

    const int code;

  private:
    static std::string
    text(int status)
    {
        char room[128];

        return s3dlio_status_text(status, room, sizeof room);
    }
};

/* Returns a result that is no failure. */
template <typename Result>
Result
check(Result result, const std::string &what)
{
    if (result < 0)
        throw error(what, static_cast<int>(result));
    return result;
}

/* Goes on with a call that returns now and then, as slice_ms of the options has it. */
template <typename Call>
auto
whole(Call call) -> decltype(call())
{
    decltype(call()) result;

    do
        result = call();
    while (result == -EAGAIN);
    return result;
}

/* Options with their size set and the default in each other field. */
template <typename Options>
Options
defaults()
{
    Options options = Options();

    options.struct_nbytes = sizeof options;
    return options;
}

/* Memory for large transfers. */
class buffer
{
  public:
    explicit buffer(std::size_t nbytes) : nbytes_(nbytes)
    {
        check(s3dlio_buffer_alloc(&data_, nbytes), "buffer");
    }

    ~buffer()
    {
        s3dlio_buffer_free(data_, nbytes_);
    }

    buffer(const buffer &) = delete;
    buffer &
    operator=(const buffer &) = delete;

    void *
    data() const
    {
        return data_;
    }

    std::size_t
    size() const
    {
        return nbytes_;
    }

  private:
    void *data_;
    std::size_t nbytes_;
};

class reader
{
  public:
    explicit reader(const std::string &path,
                    const s3dlio_reader_options &options = defaults<s3dlio_reader_options>())
        : path_(path), handle_(open(path, options), s3dlio_reader_free)
    {
    }

    std::uint64_t
    size() const
    {
        return s3dlio_reader_nbytes(handle_.get());
    }

    /* After an exception of it the reader has to go before the room: what was begun may still come.
     * Fills 'room' from 'offset' on, as far as the file goes; returns the count of bytes. */
    std::size_t
    read(const buffer &room, std::uint64_t offset)
    {
        return static_cast<std::size_t>(check(
            whole([&] {
                return s3dlio_reader_read(handle_.get(), room.data(), room.size(), offset, nullptr);
            }),
            path_));
    }

  private:
    static s3dlio_reader *
    open(const std::string &path, const s3dlio_reader_options &options)
    {
        s3dlio_reader *handle;

        check(s3dlio_reader_open(&handle, path.c_str(), &options), path);
        return handle;
    }

    std::string path_;
    std::unique_ptr<s3dlio_reader, decltype(&s3dlio_reader_free)> handle_;
};

/* A file that appears with close(), and not at all when the writer goes away before. */
class writer
{
  public:
    explicit writer(const std::string &path,
                    const s3dlio_writer_options &options = defaults<s3dlio_writer_options>())
        : path_(path), handle_(open(path, options), s3dlio_writer_free)
    {
    }

    void
    write(const void *data, std::size_t nbytes)
    {
        const char *rest = static_cast<const char *>(data);
        std::size_t taken = 0;

        check(whole([&] {
                  rest += taken;
                  nbytes -= taken;
                  return s3dlio_writer_write(handle_.get(), rest, nbytes, &taken);
              }),
              path_);
    }

    void
    close()
    {
        check(whole([&] { return s3dlio_writer_close(handle_.get()); }), path_);
    }

    s3dlio_writer_stats
    stats() const
    {
        s3dlio_writer_stats stats;

        check(s3dlio_writer_get_stats(handle_.get(), &stats, sizeof stats), path_);
        return stats;
    }

  private:
    static s3dlio_writer *
    open(const std::string &path, const s3dlio_writer_options &options)
    {
        s3dlio_writer *handle;

        check(s3dlio_writer_open(&handle, path.c_str(), &options), path);
        return handle;
    }

    std::string path_;
    std::unique_ptr<s3dlio_writer, decltype(&s3dlio_writer_free)> handle_;
};

} // namespace s3dlio

#endif /* S3DLIO_HPP */
