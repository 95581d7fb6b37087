# Trains, extracts directions and writes the report. BACKEND=cpu or cuda chooses the build of torch.
FROM python:3.11.14-slim-bookworm AS build
ARG BACKEND=cuda
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN pip install uv==0.13.9
COPY requirements/sandbox.in requirements/trainer.in requirements/cpu.overrides requirements/cpu.lock \
     requirements/cuda.lock /requirements/
# The lock pins every version and its hashes; trainer.in says which of them belong here. torch's CPU build is on
# PyTorch's own index, its CUDA build on PyPI.
RUN python -m venv --without-pip /venv \
 && case "$BACKEND" in \
      cpu) set -- --torch-backend=cpu --override /requirements/cpu.overrides ;; \
      cuda) set -- ;; \
      *) echo "BACKEND=$BACKEND: choose cpu or cuda" >&2; exit 2 ;; \
    esac \
 && VIRTUAL_ENV=/venv uv pip install --no-cache "$@" -r /requirements/trainer.in \
      -c "/requirements/$BACKEND.lock" --build-constraint "/requirements/$BACKEND.lock"

FROM python:3.11.14-slim-bookworm
ARG GIT_COMMIT=
RUN groupadd --gid 10001 rankspace && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin rankspace
COPY --from=build /venv /venv
WORKDIR /app
COPY common common
COPY rankspace rankspace
COPY tasks tasks
COPY experiments experiments
COPY services/__init__.py services/
COPY services/trainer services/trainer
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 GIT_COMMIT=$GIT_COMMIT
USER 10001:10001
EXPOSE 8101
ENTRYPOINT []
CMD ["python", "-m", "services.trainer", "--help"]
