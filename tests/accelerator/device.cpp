// A PyTorch device without hardware: memory is host memory and every kernel runs on the CPU, but operators refuse tensors
// of two devices, as they do on CUDA. What is only right by accident on a CPU fails on it.
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/native/TensorShape.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <algorithm>
#include <atomic>
#include <set>
#include <string>

namespace {

constexpr auto kDevice = c10::DeviceType::PrivateUse1;
std::atomic<int64_t> synchronizations{0};

// ---- memory --------------------------------------------------------------------------------------------------------

struct HostAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = nullptr;
    if (bytes) TORCH_CHECK(posix_memalign(&memory, 64, bytes) == 0, "out of memory");
    return {memory, memory, &free, c10::Device(kDevice, 0)};
  }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { memcpy(to, from, bytes); }
};
HostAllocator allocator;

// ---- one device, one stream ----------------------------------------------------------------------------------------

struct OneDevice final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = kDevice;
  c10::DeviceType type() const override { return kDevice; }
  c10::Device exchangeDevice(c10::Device) const override { return getDevice(); }
  c10::Device getDevice() const override { return c10::Device(kDevice, 0); }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream getDefaultStream(c10::Device device) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return getStream(stream.device()); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override { synchronizations++; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, OneDevice);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  bool isPinnedPtr(const void*) const override { return false; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetAllocator(c10::DeviceType::CPU); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::detail::createCPUGenerator(); }
  at::Device getDeviceFromPtr(void*) const override { return at::Device(kDevice, 0); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto fresh = allocator.allocate(bytes);
    auto* old = storage.unsafeGetStorageImpl();
    memcpy(fresh.get(), old->mutable_data(), std::min<size_t>(bytes, old->nbytes()));
    old->set_data_ptr_noswap(std::move(fresh));
    old->set_nbytes(bytes);
  }
};
Hooks hooks;

// ---- operators that every backend has to bring ---------------------------------------------------------------------

using Sizes = c10::SymIntArrayRef;
template <typename T> using Maybe = std::optional<T>;

const c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);

caffe2::TypeMeta type_or_default(Maybe<at::ScalarType> type) {
  return type ? c10::scalarTypeToTypeMeta(*type) : c10::get_default_dtype();
}

// The same memory, seen as a tensor on the CPU.
at::Tensor on_host(const at::Tensor& tensor) {
  if (tensor.device().type() != kDevice) return tensor;
  auto storage = tensor.storage();
  auto bytes = at::from_blob(storage.mutable_data(), {(int64_t)storage.nbytes()}, [storage](void*) {}, at::kByte);
  auto view = at::empty({0}, tensor.options().device(c10::kCPU));
  view.set_(bytes.storage(), tensor.storage_offset(), tensor.sizes(), tensor.strides());
  view._set_conj(tensor.is_conj());
  view._set_neg(tensor.is_neg());
  return view;
}

at::Tensor empty(Sizes sizes, Maybe<at::ScalarType> type, Maybe<at::Layout>, Maybe<at::Device>, Maybe<bool>,
                 Maybe<at::MemoryFormat> format) {
  auto scalar = c10::typeMetaToScalarType(type_or_default(type));
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(sizes), &allocator, keys, scalar, format);
}

at::Tensor empty_strided(Sizes sizes, Sizes strides, Maybe<at::ScalarType> type, Maybe<at::Layout>, Maybe<at::Device>,
                         Maybe<bool>) {
  auto scalar = c10::typeMetaToScalarType(type_or_default(type));
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(sizes), C10_AS_INTARRAYREF_SLOW(strides), &allocator,
                                           keys, scalar);
}

at::Tensor as_strided(const at::Tensor& self, Sizes sizes, Sizes strides, Maybe<c10::SymInt> offset) {
  Maybe<int64_t> start;
  if (offset) start = offset->guard_int(__FILE__, __LINE__);
  return at::native::as_strided_tensorimpl(self, C10_AS_INTARRAYREF_SLOW(sizes), C10_AS_INTARRAYREF_SLOW(strides), start);
}

at::Tensor view(const at::Tensor& self, Sizes sizes) { return at::native::view(self, C10_AS_INTARRAYREF_SLOW(sizes)); }

at::Tensor reshape_alias(const at::Tensor& self, Sizes sizes, Sizes strides) {
  return at::native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(sizes), C10_AS_INTARRAYREF_SLOW(strides));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  on_host(to).copy_(on_host(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar item(const at::Tensor& self) { return on_host(self).item(); }

at::Tensor& set_storage(at::Tensor& self, at::Storage storage, c10::SymInt offset, Sizes sizes, Sizes strides) {
  return at::cpu::set_(self, storage, offset.guard_int(__FILE__, __LINE__), C10_AS_INTARRAYREF_SLOW(sizes),
                       C10_AS_INTARRAYREF_SLOW(strides));
}

at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& source) { return at::native::set_tensor_(self, source); }

const at::Tensor& resize(const at::Tensor& self, Sizes sizes, Maybe<at::MemoryFormat> format) {
  return at::native::resize_(self, C10_AS_INTARRAYREF_SLOW(sizes), format);
}

// ---- all others: on the CPU, unless they mix devices ---------------------------------------------------------------

struct Places {
  bool device = false, cpu = false;
  void add(const at::Tensor& tensor) {
    if (!tensor.defined()) return;
    device |= tensor.device().type() == kDevice;
    cpu |= tensor.device().is_cpu() && tensor.dim() > 0;  // scalars may lie anywhere
  }
};

// Indices may lie on the CPU where what is indexed lies on the device; the other way round is an error.
bool takes_indices(const std::string& name) {
  static const std::set<std::string> names{"aten::index", "aten::index_put_", "aten::_index_put_impl_",
                                           "aten::index_put", "aten::_unsafe_index"};
  return names.count(name) > 0;
}

void on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& name = op.schema().name();
  auto arguments = torch::jit::last(stack, op.schema().arguments().size());
  Places places;
  bool self_on_device = false;
  for (size_t i = 0; i < arguments.size(); i++) {
    const auto& value = arguments[i];
    if (value.isTensor()) {
      places.add(value.toTensor());
      if (i == 0) self_on_device = places.device;
    } else if (value.isList() && !(takes_indices(name) && self_on_device)) {
      for (const c10::IValue& each : value.toListRef())
        if (each.isTensor()) places.add(each.toTensor());
    }
  }
  TORCH_CHECK(!(places.device && places.cpu), "Expected all tensors to be on the same device, but found at least two "
              "devices, fake:0 and cpu! (in ", name, ")");
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&on_cpu>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("as_strided", &as_strided);
  library.impl("view", &view);
  library.impl("_reshape_alias", &reshape_alias);
  library.impl("_copy_from", &copy_from);
  library.impl("_copy_from_and_resize", &copy_from_and_resize);
  library.impl("_local_scalar_dense", &item);
  library.impl("set_.source_Storage_storage_offset", &set_storage);
  library.impl("set_.source_Tensor", &set_tensor);
  library.impl("resize_", &resize);
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  c10::SetAllocator(kDevice, &allocator);
  at::RegisterPrivateUse1HooksInterface(&hooks);
  module.def("synchronizations", [] { return synchronizations.load(); });
}
