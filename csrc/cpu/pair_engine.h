// The pair operations on a CPU: groups of videos in parallel, the matrix products, the gap's
// variance, the gradients' products.
//
// Work is cut into pieces whose size does not depend on the number of threads, and each piece is
// computed by one thread, so that results repeat bit for bit.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>

#include "cpu/pair_kernels.h"
#include "cpu/parallel.h"
#include "operators/pair_engine.h"

namespace garevla::cpu {

struct Device;  // operators.cpp

// Products, in elements, that are held at once, and that are one thread's one matrix product.
constexpr std::int64_t chunk_elements = 1 << 20;
constexpr std::int64_t group_elements = 1 << 17;

// Texts that are one thread's at once where work is cut by texts.
constexpr std::int64_t block_texts = 64;

// Uninitialized memory of one thread, aligned for the widest vectors.
template <typename T>
class Scratch {
 public:
  static constexpr std::size_t alignment = 64;  // bytes

  explicit Scratch(std::int64_t size)
      : memory_(static_cast<T*>(
                    std::aligned_alloc(alignment, (size * sizeof(T) / alignment + 1) * alignment)),
                std::free) {
    if (!memory_) throw std::bad_alloc();
  }
  T* data() const { return memory_.get(); }

 private:
  std::unique_ptr<T, decltype(&std::free)> memory_;
};

// Sum of term(k), the partial sums of a vector's elements apart.
template <typename Term>
double sum_of(std::int64_t count, const Term& term) {
  constexpr int lanes = 8;
  double sums[lanes] = {};
  std::int64_t k = 0;
  for (; k + lanes <= count; k += lanes)
    for (int lane = 0; lane < lanes; ++lane) sums[lane] += term(k + lane);
  for (; k < count; ++k) sums[k % lanes] += term(k);
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

template <typename T>
class PairEngine : public PairEngineBase {
 public:
  const PairKernels<T>& kernels = pair_kernels<T>();

  // numbers_per_pair: how many the caller keeps of a pair while a chunk lasts. Where there are
  // none, all videos are one chunk.
  PairEngine(const Device&, const PairInputs& pair_inputs, std::int64_t numbers_per_pair)
      : PairEngineBase(pair_inputs) {
    chunk_ = numbers_per_pair ? videos_within(chunk_elements) : inputs.videos;
    prepare_texts();
    prepare_videos();
  }

  template <typename Body>
  void for_each_chunk(const Body& body) const {
    for_each_range(body);
  }

  // Videos of one thread.
  struct Group : VideoRange {
    Tensor products;      // (videos * R, A)
    Tensor gap_variance;  // (videos, A)
  };

  // Calls body(group) for groups of the chunk, in parallel. Their products are parts of
  // all_products (videos * R, A) where that is defined.
  template <typename Body>
  void for_each_group(const VideoRange& chunk, const Tensor& all_products, const Body& body) const {
    const std::int64_t step = videos_within(group_elements);
    parallel_pieces((chunk.videos + step - 1) / step, [&](std::int64_t from, std::int64_t to) {
      // Fresh memory is slow: one buffer for all groups of this thread.
      Tensor of_thread;
      if (!all_products.defined()) of_thread = inputs.empty({step * inputs.num_rows, inputs.texts});
      for (std::int64_t start = from * step; start < std::min(to * step, chunk.videos);
           start += step) {
        const std::int64_t videos = std::min(step, chunk.videos - start);
        Group group{{chunk.first + start, videos}, {}, {}};
        group.products = of_thread.defined() ? of_thread.narrow(0, 0, videos * inputs.num_rows)
                                             : all_products.narrow(0, start * inputs.num_rows,
                                                                   videos * inputs.num_rows);
        product(group.products, rows(group, inputs.rows), inputs.text.transposed());
        group.gap_variance = gap_variance(group);
        body(group);
      }
    });
  }

  // Video j of a group, for a kernel.
  PairChunk<T> pairs(const Group& group, std::int64_t j) const {
    return {j,
            1,
            inputs.texts,
            inputs.template video<T>(j),
            inputs.template constants<T>(),
            data_at<T>(group.products, (j - group.first) * inputs.num_rows),
            data_at<const T>(group.gap_variance, j - group.first),
            data_at<const T>(squared_norm_)};
  }

  Scratch<T> scratch() const {
    return Scratch<T>(kernels.scratch_size(int(inputs.heads), int(inputs.frames)));
  }

  void forward(const VideoRange& chunk, const PairScores<T>& to) const {
    for_each_group(chunk, {}, [&](const Group& group) {
      const Scratch<T> memory = scratch();
      for (std::int64_t j = group.first; j < group.end(); ++j)
        kernels.forward(pairs(group, j), to.from(j - chunk.first, inputs.texts, inputs.basis),
                        memory.data());
    });
  }

  // Gathers the gradients of text and factors from chunk after chunk of videos.
  class Gradient {
   public:
    Gradient(const PairEngine& engine, const PairGradients& to)
        : engine_(engine),
          to_(to),
          products_(
              engine.inputs.empty({engine.chunk() * engine.inputs.num_rows, engine.inputs.texts})),
          gap_variance_(engine.inputs.empty({engine.chunk(), engine.inputs.texts})),
          squared_norm_(gap_variance_.like()),
          wide_(engine.centered_text_.like()),
          squared_norm_sum_(engine.squared_norm_.like()) {
      to.text.zero();
      wide_.zero();
      squared_norm_sum_.zero();
    }

    // Numbers that a pair has in the buffers.
    static std::int64_t numbers_per_pair(const PairInputs& inputs) { return inputs.num_rows + 2; }

    // Calls body(group) as for_each_group does, to run the kernels of the group's videos, which
    // write to of_video(chunk, j).
    template <typename Body>
    void for_each_group(const VideoRange& chunk, const Body& body) const {
      const Tensor products = products_.narrow(0, 0, chunk.videos * engine_.inputs.num_rows);
      engine_.for_each_group(chunk, products, [&](const Group& group) {
        body(group);
        engine_.video_gradient(group, data_at<const T>(gap_variance_, group.first - chunk.first),
                               to_);
      });
    }
    VideoAdjoint<T> of_video(const VideoRange& chunk, std::int64_t j) const {
      return {data_at<T>(gap_variance_, j - chunk.first),
              data_at<T>(squared_norm_, j - chunk.first), to_.template arrays<T>(j)};
    }

    // Takes a chunk into the texts' gradient; blocks of texts in parallel.
    void add(const VideoRange& chunk) {
      const Tensor rows = engine_.rows(chunk, engine_.inputs.rows);
      const Tensor products = products_.narrow(0, 0, rows.size(0));
      const std::int64_t texts = engine_.inputs.texts, dim = engine_.inputs.dim;
      parallel_blocks(texts, block_texts, [&](std::int64_t start, std::int64_t length) {
        add_product(to_.text.narrow(0, start, length),
                    products.narrow(1, start, length).transposed(), rows);
        const Tensor variance = engine_.inputs.empty_wide({chunk.videos, length});
        const Tensor through = engine_.inputs.empty_wide({length, dim});
        std::vector<double> sums(length);
        T* squared_norm = data_at<T>(squared_norm_sum_, start);
        for (std::int64_t j = 0; j < chunk.videos; ++j) {
          double* wide = data_at<double>(variance, j);
          const T* narrow = data_at<const T>(gap_variance_, j) + start;
          const T* squares = data_at<const T>(squared_norm_, j) + start;
          for (std::int64_t i = 0; i < length; ++i) {
            sums[i] += wide[i] = narrow[i];
            squared_norm[i] += squares[i];
          }
        }
        product(through, variance.transposed(), chunk.of(engine_.mean_frame_));
        for (std::int64_t i = 0; i < length; ++i) {
          const double* centered = data_at<const double>(engine_.centered_text_, start + i);
          const double* part = data_at<const double>(through, i);
          double* to = data_at<double>(wide_, start + i);
          for (std::int64_t d = 0; d < dim; ++d) to[d] = to[d] + centered[d] * sums[i] - part[d];
        }
      });
    }

    void finish() {
      const std::int64_t dim = engine_.inputs.dim;
      parallel_blocks(engine_.inputs.texts, block_texts,
                      [&](std::int64_t start, std::int64_t length) {
                        for (std::int64_t i = start; i < start + length; ++i) {
                          const double* wide = data_at<const double>(wide_, i);
                          const T* text = data_at<const T>(engine_.inputs.text, i);
                          const T twice = 2 * *data_at<const T>(squared_norm_sum_, i);
                          T* to = data_at<T>(to_.text, i);
                          for (std::int64_t d = 0; d < dim; ++d)
                            to[d] = to[d] + T(wide[d] * (2.0 / double(dim))) + text[d] * twice;
                        }
                      });
    }

   private:
    const PairEngine& engine_;
    const PairGradients& to_;
    // Gradients of a chunk's products (chunk * R, A), gap variances (chunk, A) and squared norms
    // (chunk, A).
    Tensor products_, gap_variance_, squared_norm_;
    Tensor wide_;              // (A, D) double: the part through the gap's variance, times D / 2
    Tensor squared_norm_sum_;  // (A)
  };

  void backward(const VideoRange& chunk, const PairScores<const T>& grad_scores,
                const Gradient& gradient) const {
    gradient.for_each_group(chunk, [&](const Group& group) {
      const Scratch<T> memory = scratch();
      for (std::int64_t j = group.first; j < group.end(); ++j)
        kernels.backward(pairs(group, j),
                         grad_scores.from(j - chunk.first, inputs.texts, inputs.basis),
                         gradient.of_video(chunk, j), memory.data());
    });
  }

 private:
  std::int64_t videos_within(std::int64_t elements) const {
    return std::clamp<std::int64_t>(elements / (inputs.texts * inputs.num_rows), 1, inputs.videos);
  }

  void prepare_texts() {
    centered_text_ = inputs.empty_wide({inputs.texts, inputs.dim});
    text_squares_ = inputs.empty_wide({inputs.texts});
    squared_norm_ = inputs.empty("A");
    const std::int64_t dim = inputs.dim;
    parallel_blocks(inputs.texts, block_texts, [&](std::int64_t start, std::int64_t length) {
      for (std::int64_t i = start; i < start + length; ++i) {
        const T* text = data_at<const T>(inputs.text, i);
        double* centered = data_at<double>(centered_text_, i);
        const double mean = sum_of(dim, [&](auto d) { return double(text[d]); }) / double(dim);
        for (std::int64_t d = 0; d < dim; ++d) centered[d] = text[d] - mean;
        *data_at<double>(text_squares_, i) = square_of(centered);
        *data_at<T>(squared_norm_, i) = T(square_of(text));
      }
    });
  }

  void prepare_videos() {
    mean_frame_ = inputs.mean_frame.to(type_of<double>());
    video_squares_ = inputs.empty_wide({inputs.videos});
    for (std::int64_t j = 0; j < inputs.videos; ++j)
      *data_at<double>(video_squares_, j) = square_of(data_at<const double>(mean_frame_, j));
  }

  // Squared norm of D numbers.
  template <typename Number>
  double square_of(const Number* numbers) const {
    return sum_of(inputs.dim, [&](auto d) { return double(numbers[d]) * double(numbers[d]); });
  }

  Tensor gap_variance(const VideoRange& range) const {
    const Tensor cross = inputs.empty_wide({range.videos, inputs.texts});
    const Tensor variance = inputs.empty({range.videos, inputs.texts});
    product(cross, range.of(mean_frame_), centered_text_.transposed());
    const double* text = data_at<const double>(text_squares_);
    for (std::int64_t j = 0; j < range.videos; ++j) {
      const double video = *data_at<const double>(video_squares_, range.first + j);
      const double* products = data_at<const double>(cross, j);
      T* to = data_at<T>(variance, j);
      for (std::int64_t i = 0; i < inputs.texts; ++i) {
        const double squares = video + text[i] - 2 * products[i];
        to[i] = T((squares < 0 ? 0 : squares) / double(inputs.dim));
      }
    }
    return variance;
  }

  // What the gradients of a group's products and gap variances (videos, A) mean for its rows and
  // mean frames.
  void video_gradient(const Group& group, const T* grad_variance, const PairGradients& to) const {
    product(rows(group, to.rows), group.products, inputs.text);
    const std::int64_t texts = inputs.texts, dim = inputs.dim;
    const Tensor wide = inputs.empty_wide({group.videos, texts});
    const Tensor through = inputs.empty_wide({group.videos, dim});
    std::copy_n(grad_variance, group.videos * texts, data_at<double>(wide));
    product(through, wide, centered_text_);
    for (std::int64_t j = 0; j < group.videos; ++j) {
      const double* variance = data_at<const double>(wide, j);
      const double sum = sum_of(texts, [&](auto i) { return variance[i]; });
      const double* frame = data_at<const double>(mean_frame_, group.first + j);
      const double* part = data_at<const double>(through, j);
      T* gradient = data_at<T>(to.mean_frame, group.first + j);
      for (std::int64_t d = 0; d < dim; ++d)
        gradient[d] = T((frame[d] * sum - part[d]) * (2.0 / double(dim)));
    }
  }
};

}  // namespace garevla::cpu
