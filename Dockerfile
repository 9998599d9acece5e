# docker build -t tdaf .
# docker run --gpus all --shm-size 16g -v PATH:/data:ro -v RUNS:/tdaf/runs tdaf task=imagenet data.root=/data
FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv git \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1

WORKDIR /tdaf
COPY . .
RUN pip install --no-cache-dir -e . \
    && mkdir -p runs data \
    && chown -R 1000:1000 runs data

USER 1000
ENTRYPOINT ["python", "train.py"]
