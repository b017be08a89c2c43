# patchmint in a container: docs/install.md says how to build and run it.
# torch's usual wheels bring CUDA and also run on CPUs. For a smaller image without CUDA pass the address of PyTorch's
# index of CPU wheels as TORCH_INDEX; the lock has no checksums for those.
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
ARG TORCH_INDEX=""
ENV UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1 VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH
WORKDIR /src
COPY requirements-uv.lock requirements.lock ./
RUN python3 -m venv /opt/venv && pip install --no-cache-dir --require-hashes -r requirements-uv.lock
RUN if [ -n "$TORCH_INDEX" ]; then \
        grep -oE '^torch(vision)?==[0-9.]+' requirements.lock > torch.txt \
        && uv pip install --no-deps --index-url "$TORCH_INDEX" -r torch.txt \
        && awk '/^[a-z]/ {cuda = /^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==/} !cuda' requirements.lock > rest.lock \
        && mv rest.lock requirements.lock; \
    fi \
    && uv pip install --no-deps --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY patchmint patchmint
RUN uv pip install --no-deps --no-build-isolation .

FROM ${BASE}
COPY --from=build /opt/venv /opt/venv
# where examples/rayjob.yaml looks for them
COPY examples /opt/patchmint/examples
# Login shells, which KubeRay starts, set a PATH of their own.
RUN echo "PATH=/opt/venv/bin:\$PATH" > /etc/profile.d/patchmint.sh \
    && useradd --create-home --uid 1000 patchmint \
    && install -d -o patchmint /weights /work
ENV PATH=/opt/venv/bin:$PATH PATCHMINT_WEIGHTS=/weights
USER 1000
WORKDIR /work
ENTRYPOINT ["patchmint"]
CMD ["--help"]
