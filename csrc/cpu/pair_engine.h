// The pair operations on a CPU: groups of videos in parallel, the matrix products, the gap's
// variance, the gradients' products.
//
// Work is cut into pieces whose size does not depend on the number of threads, and each piece is
// computed by one thread, so that results repeat bit for bit.
#pragma once

#include <cstdlib>
#include <memory>

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
    TORCH_CHECK(memory_, "out of memory for ", size, " numbers of scratch");
  }
  T* data() const { return memory_.get(); }

 private:
  std::unique_ptr<T, decltype(&std::free)> memory_;
};

template <typename T>
class PairEngine : public PairEngineBase {
 public:
  const PairKernels<T>& kernels = pair_kernels<T>();

  // numbers_per_pair: how many the caller keeps of a pair while a chunk lasts. Where there are
  // none, all videos are one chunk.
  PairEngine(const Device&, const PairInputs& pair_inputs, std::int64_t numbers_per_pair)
      : PairEngineBase(pair_inputs), transposed_text_(pair_inputs.text.t()) {
    chunk_ = numbers_per_pair ? videos_within(chunk_elements) : inputs.videos;
  }

  template <typename Body>
  void for_each_chunk(const Body& body) const {
    for_each_range(body);
  }

  // Videos of one thread.
  struct Group : VideoRange {
    at::Tensor products;      // (videos * R, A)
    at::Tensor gap_variance;  // (videos, A)
  };

  // Calls body(group) for groups of the chunk, in parallel. Their products are parts of
  // all_products (videos * R, A) where that is defined.
  template <typename Body>
  void for_each_group(const VideoRange& chunk, const at::Tensor& all_products,
                      const Body& body) const {
    const std::int64_t step = videos_within(group_elements);
    parallel_pieces((chunk.videos + step - 1) / step, [&](std::int64_t from, std::int64_t to) {
      // Fresh memory is slow: one buffer for all groups of this thread.
      at::Tensor of_thread;
      if (!all_products.defined())
        of_thread = at::empty({step * inputs.num_rows, inputs.texts}, inputs.text.options());
      for (std::int64_t start = from * step; start < std::min(to * step, chunk.videos);
           start += step) {
        const std::int64_t videos = std::min(step, chunk.videos - start);
        Group group{{chunk.first + start, videos}, {}, {}};
        group.products = of_thread.defined() ? of_thread.narrow(0, 0, videos * inputs.num_rows)
                                             : all_products.narrow(0, start * inputs.num_rows,
                                                                   videos * inputs.num_rows);
        at::mm_out(group.products, rows(group), transposed_text_);
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
          products_(at::empty({engine.chunk() * engine.inputs.num_rows, engine.inputs.texts},
                              to.text.options())),
          gap_variance_(at::empty({engine.chunk(), engine.inputs.texts}, to.text.options())),
          squared_norm_(at::empty_like(gap_variance_)),
          wide_(at::zeros_like(engine.centered_text_)),
          squared_norm_sum_(at::zeros_like(engine.squared_norm_)) {
      to.text.zero_();
    }

    // Numbers that a pair has in the buffers.
    static std::int64_t numbers_per_pair(const PairInputs& inputs) { return inputs.num_rows + 2; }

    // Calls body(group) as for_each_group does, to run the kernels of the group's videos, which
    // write to of_video(chunk, j).
    template <typename Body>
    void for_each_group(const VideoRange& chunk, const Body& body) const {
      const at::Tensor products = products_.narrow(0, 0, chunk.videos * engine_.inputs.num_rows);
      engine_.for_each_group(chunk, products, [&](const Group& group) {
        body(group);
        const at::Tensor variance =
            gap_variance_.narrow(0, group.first - chunk.first, group.videos).to(at::kDouble);
        engine_.video_gradient(group, group.products, variance, to_);
      });
    }
    VideoAdjoint<T> of_video(const VideoRange& chunk, std::int64_t j) const {
      return {data_at<T>(gap_variance_, j - chunk.first),
              data_at<T>(squared_norm_, j - chunk.first), to_.template arrays<T>(j)};
    }

    // Takes a chunk into the texts' gradient; blocks of texts in parallel.
    void add(const VideoRange& chunk) {
      const at::Tensor rows = engine_.rows(chunk), mean_frame = chunk.of(engine_.mean_frame_);
      const at::Tensor products = products_.narrow(0, 0, rows.size(0));
      auto of_chunk = [&](const at::Tensor& all) { return all.narrow(0, 0, chunk.videos); };
      parallel_blocks(
          engine_.inputs.texts, block_texts, [&](std::int64_t start, std::int64_t length) {
            auto of_texts = [&](const at::Tensor& all, int axis) {
              return all.narrow(axis, start, length);
            };
            at::Tensor text = of_texts(to_.text, 0);
            at::addmm_out(text, text, of_texts(products, 1).t(), rows);
            const at::Tensor variance = of_texts(of_chunk(gap_variance_), 1).to(at::kDouble);
            at::Tensor wide = of_texts(wide_, 0);
            wide += of_texts(engine_.centered_text_, 0) * variance.sum(0).unsqueeze(1);
            wide -= variance.t().mm(mean_frame);
            of_texts(squared_norm_sum_, 0) += of_texts(of_chunk(squared_norm_), 1).sum(0);
          });
    }

    void finish() {
      parallel_blocks(
          engine_.inputs.texts, block_texts, [&](std::int64_t start, std::int64_t length) {
            auto of_texts = [&](const at::Tensor& all) { return all.narrow(0, start, length); };
            at::Tensor text = of_texts(to_.text);
            text += (of_texts(wide_) * (2.0 / engine_.inputs.dim)).to(text.scalar_type());
            text += of_texts(engine_.inputs.text) * (of_texts(squared_norm_sum_).unsqueeze(1) * 2);
          });
    }

   private:
    const PairEngine& engine_;
    const PairGradients& to_;
    // Gradients of a chunk's products (chunk * R, A), gap variances (chunk, A) and squared norms
    // (chunk, A).
    at::Tensor products_, gap_variance_, squared_norm_;
    at::Tensor wide_;  // (A, D) double: the part through the gap's variance, times D / 2
    at::Tensor squared_norm_sum_;  // (A)
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

  at::Tensor gap_variance(const VideoRange& range) const {
    const at::Tensor cross = range.of(mean_frame_).mm(centered_text_.t());
    const at::Tensor squares = range.of(video_squares_) + text_squares_;
    return ((squares - 2 * cross).clamp_min_(0) / double(inputs.dim)).to(inputs.text.scalar_type());
  }

  at::Tensor transposed_text_;  // (D, A)
};

}  // namespace garevla::cpu
